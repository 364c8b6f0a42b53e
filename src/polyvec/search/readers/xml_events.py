"""XML without a tree: functions are called as tags and texts are met, in bounded memory.

Entities that a document declares could grow without bound, and are refused.
"""

from collections.abc import Callable
from xml.parsers import expat

Attributes = dict[str, str]


def parse_xml(
    raw: bytes,
    *,
    start: Callable[[str, Attributes], object] = lambda tag, attributes: None,
    end: Callable[[str], object] = lambda tag: None,
    text: Callable[[str], object] = lambda text: None,
) -> None:
    """Call the functions with tags and texts as they come.

    Names of tags lack the prefixes of their namespaces, and attributes have both names. Raises
    ValueError if the document is no XML, or declares entities.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = lambda tag, attributes: start(
        _local(tag), attributes | {_local(name): value for name, value in attributes.items()}
    )
    parser.EndElementHandler = lambda tag: end(_local(tag))
    parser.CharacterDataHandler = text
    parser.EntityDeclHandler = _refuse_entity
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as error:
        raise ValueError(f"its XML is damaged ({error})") from None


def _local(name: str) -> str:
    """The name without the prefix of its namespace: writers choose prefixes freely."""
    return name.rpartition(":")[2]


def _refuse_entity(name: str, *declaration: object) -> None:
    raise ValueError(f"its XML declares an entity, {name[:40]}")
