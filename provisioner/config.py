"""MindRoom's config, `config.json`: the customer's, with the platform's part instead of theirs."""

import re

PLATFORM = {"plugins": [{"path": "./plugins/platform-usage"}]}
"""What an instance's config has whatever its customer wrote, by key. Of the plugins the platform's
alone: a plugin is code in MindRoom's own process, which could do without any other."""

_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def as_yaml(config: str) -> str:
    """JSON text that also YAML reads as what it is, as MindRoom does.

    YAML takes some characters for line breaks, and refuses others, that JSON may have in a string.

    Args:
        config: JSON as PostgreSQL writes jsonb, without a character below U+0020.
    """
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", config)
