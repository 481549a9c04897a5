import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.errors import DigestInvalid
from ipfsreg.oci.digest import Digest

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_content_has_the_digest_the_spec_shows() -> None:
    assert str(Digest.of(b"{}")) == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert str(Digest.of(b"")) == EMPTY


@given(st.binary(max_size=100), st.sampled_from(["sha256", "sha512"]))
def test_a_digest_survives_its_text_form(data: bytes, algorithm: str) -> None:
    digest = Digest.of(data, algorithm)
    assert Digest.parse(str(digest)) == digest
    assert digest.raw == hashlib.new(algorithm, data).digest()
    hasher = digest.hasher()
    hasher.update(data)
    assert hasher.hexdigest() == digest.hex


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        EMPTY[:-1],
        EMPTY + "0",
        EMPTY.upper(),
        EMPTY.replace("sha256", "SHA256"),
        "sha256:" + EMPTY[7:].upper(),
        EMPTY.replace("sha256", "sha512"),
        EMPTY.replace("sha256", "md5"),
        EMPTY.replace(":", "/"),
        EMPTY.replace("e3", "g3"),
        EMPTY + "\n",
        "\n" + EMPTY,
        " " + EMPTY,
        "sha256:../../../../../../../../../../../../../../../../../../../../etc/pass",
        EMPTY.replace("e3b0", "%2e%2e"),
        EMPTY.replace("0", "٠"),  # an Arabic-Indic digit
        "sha256:" + "0" * 10_000_000,
    ],
)
def test_what_is_not_a_digest_is_refused_before_a_path_is_built_of_it(text: str) -> None:
    with pytest.raises(DigestInvalid) as caught:
        Digest.parse(text)
    assert len(str(caught.value)) < 300
