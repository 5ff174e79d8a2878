"""What a prompt's text says besides what to draw: the adapters it names, and how a picture was made. Text only."""

from lorry.prompts.grammar import Prompt, find_unclosed, parse_prompt
from lorry.prompts.parameters import Parameters, parse_parameters
from lorry.prompts.tags import LoraTag

__all__ = ["LoraTag", "Parameters", "Prompt", "find_unclosed", "parse_parameters", "parse_prompt"]
