"""URLs: what they ask, and what never gets past the door."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.errors import DigestInvalid, NameInvalid, RegistryError, TagInvalid, UploadUnknown
from ipfsreg.http.paths import (
    MAX_PAGE,
    Action,
    AppendUpload,
    CancelUpload,
    DeleteBlob,
    DeleteManifest,
    FinishUpload,
    GetBlob,
    GetManifest,
    GetUpload,
    ListReferrers,
    ListRepositories,
    ListTags,
    MethodUnsupported,
    Ping,
    PutManifest,
    QueryInvalid,
    RouteUnknown,
    StartUpload,
    parse_action,
)
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName, Tag

HEX = "ab" * 32
D = Digest.parse(f"sha256:{HEX}")
D512 = Digest.parse(f"sha512:{HEX * 2}")
APP = RepositoryName("team/app")


def parse(method: str, target: str) -> Action:
    path, _, query = target.partition("?")
    return parse_action(method, path, query)


@pytest.mark.parametrize(
    ("method", "target", "action"),
    [
        ("GET", "/v2/", Ping()),
        ("GET", "/v2", Ping()),
        ("HEAD", "/v2/", Ping()),
        ("GET", "/v2/_catalog", ListRepositories(MAX_PAGE, "")),
        ("GET", "/v2/_catalog?n=5&last=a/b", ListRepositories(5, "a/b")),
        ("GET", "/v2/team/app/tags/list", ListTags(APP, MAX_PAGE, "")),
        ("GET", "/v2/team/app/tags/list?n=0", ListTags(APP, 0, "")),
        ("GET", "/v2/team/app/tags/list?n=99999999999999999999999&last=v1", ListTags(APP, MAX_PAGE, "v1")),
        ("GET", f"/v2/team/app/blobs/{D}", GetBlob(APP, D)),
        ("HEAD", f"/v2/team/app/blobs/{D}?ns=docker.io", GetBlob(APP, D)),
        ("GET", f"/v2/team/app/blobs/sha256%3A{HEX}", GetBlob(APP, D)),
        ("GET", f"/v2/team/app/blobs/{D512}", GetBlob(APP, D512)),
        ("DELETE", f"/v2/team/app/blobs/{D}", DeleteBlob(APP, D)),
        ("POST", "/v2/team/app/blobs/uploads/", StartUpload(APP, None, None, None, "sha256")),
        ("POST", "/v2/team/app/blobs/uploads", StartUpload(APP, None, None, None, "sha256")),
        ("POST", f"/v2/team/app/blobs/uploads/?digest={D}", StartUpload(APP, D, None, None, "sha256")),
        ("POST", f"/v2/team/app/blobs/uploads/?digest={D512}", StartUpload(APP, D512, None, None, "sha512")),
        (
            "POST",
            f"/v2/team/app/blobs/uploads/?mount={D}&from=other/repo",
            StartUpload(APP, None, D, RepositoryName("other/repo"), "sha256"),
        ),
        ("POST", f"/v2/team/app/blobs/uploads/?mount={D}", StartUpload(APP, None, D, None, "sha256")),
        (
            "POST",
            "/v2/team/app/blobs/uploads/?digest-algorithm=sha512",
            StartUpload(APP, None, None, None, "sha512"),
        ),
        ("GET", "/v2/team/app/blobs/uploads/a-b.c", GetUpload(APP, "a-b.c")),
        ("PATCH", "/v2/team/app/blobs/uploads/a-b.c?_state=x", AppendUpload(APP, "a-b.c")),
        ("PUT", f"/v2/team/app/blobs/uploads/a-b.c?digest={D}", FinishUpload(APP, "a-b.c", D)),
        ("PUT", f"/v2/team/app/blobs/uploads/a?digest=sha256%3A{HEX}", FinishUpload(APP, "a", D)),
        ("DELETE", "/v2/team/app/blobs/uploads/a-b.c", CancelUpload(APP, "a-b.c")),
        ("GET", "/v2/team/app/manifests/1.0", GetManifest(APP, Tag("1.0"))),
        ("GET", "/v2/app/manifests/latest", GetManifest(RepositoryName("app"), Tag("latest"))),
        ("HEAD", f"/v2/team/app/manifests/{D}", GetManifest(APP, D)),
        ("PUT", f"/v2/team/app/manifests/{D}?tag=a&tag=b", PutManifest(APP, D, (Tag("a"), Tag("b")))),
        ("PUT", "/v2/team/app/manifests/1.0", PutManifest(APP, Tag("1.0"), ())),
        ("DELETE", "/v2/team/app/manifests/1.0", DeleteManifest(APP, Tag("1.0"))),
        ("GET", f"/v2/team/app/referrers/{D}", ListReferrers(APP, D, None, "")),
        ("GET", f"/v2/team/app/referrers/{D}?artifactType=a/b%2Bjson", ListReferrers(APP, D, "a/b+json", "")),
        ("GET", f"/v2/team/app/referrers/{D}?artifactType=a/b+json", ListReferrers(APP, D, "a/b+json", "")),
        # Names may hold the API's own words; the end of the path decides.
        ("GET", "/v2/blobs/uploads/tags/list", ListTags(RepositoryName("blobs/uploads"), MAX_PAGE, "")),
        ("GET", "/v2/manifests/manifests/manifests", GetManifest(RepositoryName("manifests"), Tag("manifests"))),
        ("GET", f"/v2/a/blobs/uploads/blobs/{D}", GetBlob(RepositoryName("a/blobs/uploads"), D)),
        ("GET", "/v2/tags/list/tags/list", ListTags(RepositoryName("tags/list"), MAX_PAGE, "")),
    ],
)
def test_a_url_becomes_a_typed_action(method: str, target: str, action: Action) -> None:
    assert parse(method, target) == action


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:..%2F..%2F..%2Fetc%2Fpasswd",
        "sha256:" + "AB" * 32,
        "sha256:" + "ab" * 31,
        "sha256:" + "ab" * 33,
        "sha256:" + "zz" * 32,
        "md5:" + "ab" * 16,
        "sha256",
        "sha256:",
        ":" + "ab" * 32,
        f"sha256:{HEX}%00",
        f"sha256%3A..%2F{HEX}",
        f"sha256:{HEX}%0A",
        "baddigeststring",
        "..",
        "%2e%2e",
    ],
)
@pytest.mark.parametrize("kind", ["blobs", "referrers"])
def test_what_is_no_digest_is_refused(digest: str, kind: str) -> None:
    with pytest.raises(DigestInvalid):
        parse("GET", f"/v2/team/app/{kind}/{digest}")


@pytest.mark.parametrize(
    "name",
    [
        "UPPER/case",
        "..",
        "a/../b",
        "a//b",
        "a%2Fb",
        "a/%2e%2e/b",
        "-a",
        "a-",
        "a___b",
        "a..b",
        "a b",
        "a%20b",
        "a%00",
        "%ff",
        "%",
        "a/" * 200 + "a",
        "a\n",
        "é",
    ],
)
@pytest.mark.parametrize("rest", ["tags/list", "manifests/latest", f"blobs/{D}", f"referrers/{D}"])
def test_what_is_no_name_is_refused(name: str, rest: str) -> None:
    with pytest.raises(NameInvalid):
        parse("GET", f"/v2/{name}/{rest}")


@pytest.mark.parametrize("tag", ["", ".a", "-a", "a" * 129, "a%2Fb", "a b", "%2e%2e", "a%0a"])
def test_what_is_no_tag_is_refused(tag: str) -> None:
    with pytest.raises(TagInvalid):
        parse("GET", f"/v2/team/app/manifests/{tag}")


@pytest.mark.parametrize(
    ("method", "target", "error"),
    [
        ("POST", "/v2/team/app/blobs/uploads/?digest=bad", DigestInvalid),
        ("POST", "/v2/team/app/blobs/uploads/?mount=bad&from=a", DigestInvalid),
        ("POST", f"/v2/team/app/blobs/uploads/?mount={D}&from=../x", NameInvalid),
        ("POST", "/v2/team/app/blobs/uploads/?digest-algorithm=md5", DigestInvalid),
        ("PUT", "/v2/team/app/blobs/uploads/id", DigestInvalid),
        ("PUT", "/v2/team/app/blobs/uploads/id?digest=", DigestInvalid),
        ("PUT", f"/v2/team/app/blobs/uploads/id?digest={D}&digest={D}", QueryInvalid),
        ("PATCH", "/v2/team/app/blobs/uploads/a%2Fb", UploadUnknown),
        ("PATCH", "/v2/team/app/blobs/uploads/%2e%2e%2f", UploadUnknown),
        ("PATCH", f"/v2/team/app/blobs/uploads/{'a' * 300}", UploadUnknown),
        ("PUT", f"/v2/team/app/manifests/{D}?tag=ok&tag=..", TagInvalid),
        ("GET", "/v2/_catalog?n=-1", QueryInvalid),
        ("GET", "/v2/_catalog?n=x", QueryInvalid),
        ("GET", "/v2/team/app/tags/list?n=1e9", QueryInvalid),
        ("GET", "/v2/team/app/tags/list?n=\u0661", QueryInvalid),
        ("GET", "/v2/team/app/tags/list?" + "&".join(["x=1"] * 300), QueryInvalid),
        ("GET", "/", RouteUnknown),
        ("GET", "*", RouteUnknown),
        ("GET", "/v1/", RouteUnknown),
        ("GET", "//v2/", RouteUnknown),
        ("GET", "/v2/team/app", RouteUnknown),
        ("GET", "/v2/tags/list", RouteUnknown),
        ("GET", "/v2/%2e%2e/secret", RouteUnknown),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(method: str, target: str, error: type[RegistryError]) -> None:
    with pytest.raises(error):
        parse(method, target)


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("POST", "/v2/", "GET, HEAD"),
        ("PUT", "/v2/team/app/tags/list", "GET, HEAD"),
        ("PUT", f"/v2/team/app/blobs/{D}", "GET, HEAD, DELETE"),
        ("GET", "/v2/team/app/blobs/uploads/", "POST"),
        ("POST", "/v2/team/app/blobs/uploads/id", "GET, HEAD, PATCH, PUT, DELETE"),
        ("PATCH", "/v2/team/app/manifests/latest", "GET, HEAD, PUT, DELETE"),
        ("OPTIONS", f"/v2/team/app/referrers/{D}", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_offered_is_told_which_are(method: str, target: str, allow: str) -> None:
    with pytest.raises(MethodUnsupported) as error:
        parse(method, target)
    assert error.value.allow == allow


@given(st.text(max_size=60), st.text(max_size=30), st.sampled_from(["GET", "PUT", "POST", "PATCH", "DELETE"]))
def test_no_url_does_more_than_be_refused(path: str, query: str, method: str) -> None:
    for whole in (path, f"/v2/{path}", f"/v2/a/blobs/{path}", f"/v2/a/manifests/{path}", f"/v2/{path}/tags/list"):
        with suppress(RegistryError):
            parse_action(method, whole, query)
