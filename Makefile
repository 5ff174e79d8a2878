.DEFAULT_GOAL := help
.PHONY: help demo setup check test bench assets

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile | expand -t 8

demo:  ## set up what running needs, then draw with the shipped model
	@scripts/setup
	.venv/bin/lorry demo

setup:  ## set up .venv with the development tools
	@scripts/setup dev

check:  ## formatting, lint, types, import rules
	@scripts/setup dev
	@scripts/check

test:  ## set up, check, run all tests
	@scripts/setup dev
	@scripts/check
	@scripts/test

bench:  ## measure beside diffusers + PEFT and kohya's scripts, and write docs/benchmarks*.md
	@scripts/setup dev
	.venv/bin/python -m benchmarks.run
	.venv/bin/python -m benchmarks.workbench
	.venv/bin/python -m benchmarks.training

assets:  ## train the adapters that come with lorry, into out/assets
	@scripts/setup dev
	sh scripts/tinybase/assets.sh out/assets
