"""The licenses and languages that the metadata of a model card may name."""

import difflib
import re
from collections.abc import Sequence

from .errors import InputError
from .rows import shown


# https://huggingface.co/docs/hub/repositories-licenses
_NAMES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
pddl lgpl-lr deepfloyd-if-license llama2 gemma unknown other
"""
LICENSES = tuple(_NAMES.split())
LANGUAGE = re.compile(r"[a-z]{2,3}|multilingual|code")


def check_license(name: str | None) -> None:
    """Raise an [`InputError`] if the Hub does not know a license of this name."""
    if name is None or name in LICENSES:
        return
    near = difflib.get_close_matches(name.lower(), LICENSES, n=3, cutoff=0.5) or LICENSES[:2]
    raise InputError(
        f"license={shown(name)} is not a name that the Hub knows, such as {' or '.join(near)}; give 'other' for a "
        "license that is not on its list"
    )


def check_languages(names: Sequence[str]) -> None:
    """Raise an [`InputError`] if one of the names is not a code of ISO 639, `multilingual` or `code`."""
    for name in names:
        if not LANGUAGE.fullmatch(name):
            raise InputError(
                f"language={shown(name)} is not a code of two or three letters (ISO 639), such as en; for many "
                "languages, give 'multilingual'"
            )
