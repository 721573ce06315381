"""Where a record says it comes from: the domain of its address, or the name of its source."""

import re

FIELDS = ("url", "source_url", "link", "domain", "source")
INSIDE = ("meta", "metadata")
ADDRESS = re.compile(r"\s*(?:[a-zA-Z][\w+.-]*:)?//(?:[^/@\s]*@)?([^/:?#\s]+)")
LONGEST = 80  # characters of a name


def domain_of(record):
    """'example.org' for {"url": "https://www.Example.org/a"}, 'wiki' for {"source": "wiki"}; None: neither."""
    for holder in (record, *(record.get(name) for name in INSIDE)):
        for field in FIELDS if isinstance(holder, dict) else ():
            value = holder.get(field)
            if isinstance(value, str) and value.strip():
                return name_of(value)
    return None


def name_of(value):
    """The domain of an address, else the text itself."""
    found = ADDRESS.match(value)
    if found:
        return found[1].lower().removeprefix("www.")[:LONGEST] or None
    return value.strip()[:LONGEST]
