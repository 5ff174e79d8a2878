"""Two things of our own that no data package has, drawn for the subject adapter.

`zuzu` is a small delivery lorry with a face; `krok` is a round one-eyed monster.
"""

from __future__ import annotations

from typing import Final

_ZUZU = """
<path fill="#f7b928" d="M2 8.5A2.5 2.5 0 0 1 4.5 6H19v17H2z"/>
<path fill="#16a3a3" d="M19 11h5.5c.8 0 1.6.4 2 1.1l3 4.6c.3.5.5 1 .5 1.6V23H19z"/>
<path fill="#c8f0ff" d="M21.2 13h3.2c.5 0 .9.2 1.1.6l2.1 3.4h-6.4z"/>
<path fill="#2b2b3a" d="M1 22h30v2.4H1z"/>
<circle fill="#2b2b3a" cx="8" cy="25" r="4"/><circle fill="#d8d8e2" cx="8" cy="25" r="1.7"/>
<circle fill="#2b2b3a" cx="24" cy="25" r="4"/><circle fill="#d8d8e2" cx="24" cy="25" r="1.7"/>
<circle fill="#2b2b3a" cx="7.2" cy="12.2" r="1.7"/><circle fill="#2b2b3a" cx="13.8" cy="12.2" r="1.7"/>
<path fill="#2b2b3a" d="M6.6 16h7.8a3.9 3.4 0 0 1-7.8 0z"/>
"""

_KROK = """
<path fill="#5b2a9d" d="M7 9 4.5 2.2c-.2-.8.6-1.4 1.3-1L13 6zM25 9l2.5-6.8c.2-.8-.6-1.4-1.3-1L19 6z"/>
<path fill="#8b4ae0" d="M16 4c7.6 0 12.5 5.6 12.5 13v9.5c0 2-1 3.5-3 3.5s-3-1.5-3.2-2.6
 c-.4 1.4-1.6 2.6-3.1 2.6s-2.8-1.2-3.2-2.6c-.4 1.4-1.7 2.6-3.2 2.6s-2.7-1.2-3.1-2.6
 C9.5 28.5 8.5 30 6.5 30s-3-1.5-3-3.5V17C3.5 9.6 8.4 4 16 4z"/>
<circle fill="#ffffff" cx="16" cy="13" r="6"/><circle fill="#2fbf4f" cx="16" cy="13" r="3.6"/>
<circle fill="#141020" cx="16" cy="13" r="1.8"/>
<path fill="#2a0f4d" d="M8.5 20.5h15c-.6 3.2-3.6 5-7.5 5s-6.9-1.8-7.5-5z"/>
<path fill="#ffffff" d="M11 20.5h3.2l-1.6 2.6zM17.8 20.5H21l-1.6 2.6z"/>
"""

SUBJECT_SVG: Final = {"subject:zuzu": _ZUZU, "subject:krok": _KROK}
