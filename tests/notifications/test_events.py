"""Events as distribution writes them."""

import json

from ipfsreg.notifications.events import Asked, Event, Source, Target, envelope

SOURCE = Source("registry.test:5000", "a53db899-3b4b-4a62-a067-8dd013beaca4")
DIGEST = "sha256:fea8895f450959fa676bcc1df0611ea93823a735a01205fd8622846041d0c7cf"
TYPE = "application/vnd.docker.distribution.manifest.v2+json"


def event_of(target: Target, asked: Asked | None = None, actor: str = "") -> Event:
    return Event(
        id="320678d8-ca14-430f-8bb6-4ca139cd83f7",
        when_us=1457563466402973,
        action="pull",
        target=target,
        actor=actor,
        asked=asked or Asked(),
    )


def test_an_event_has_the_fields_that_listeners_to_distribution_know() -> None:
    target = Target(repository="hello-world", digest=DIGEST, media_type=TYPE, size=708, tag="latest", is_manifest=True)
    asked = Asked("6df24a34-0959-4923-81ca-14f09767db19", "192.0.2.11", "192.0.2.1:5000", "GET", "curl/7.38.0")
    (event,) = json.loads(envelope([event_of(target, asked, "alice").encode(SOURCE)]))["events"]
    assert event == {
        "id": "320678d8-ca14-430f-8bb6-4ca139cd83f7",
        "timestamp": "2016-03-09T22:44:26.402973Z",
        "action": "pull",
        "target": {
            "mediaType": TYPE,
            "digest": DIGEST,
            "size": 708,
            "length": 708,
            "repository": "hello-world",
            "url": f"http://192.0.2.1:5000/v2/hello-world/manifests/{DIGEST}",
            "tag": "latest",
        },
        "request": {
            "id": "6df24a34-0959-4923-81ca-14f09767db19",
            "addr": "192.0.2.11",
            "host": "192.0.2.1:5000",
            "method": "GET",
            "useragent": "curl/7.38.0",
        },
        "actor": {"name": "alice"},
        "source": {"addr": "registry.test:5000", "instanceID": "a53db899-3b4b-4a62-a067-8dd013beaca4"},
    }


def test_of_a_deletion_only_the_names_are_told() -> None:
    event = json.loads(event_of(Target(repository="library/test", digest=DIGEST), Asked(host="r")).encode(SOURCE))
    assert event["target"] == {"digest": DIGEST, "repository": "library/test"}
    assert event["actor"] == {}


def test_what_a_client_says_of_itself_is_bounded_and_never_part_of_a_url_unless_it_is_a_host() -> None:
    asked = Asked("1", "192.0.2.11", "evil/../?x=\udcff" + "h" * 5000, "GET", "\n\udc80" + "u" * 5000)
    data = event_of(Target(repository="a", digest=DIGEST, size=1), asked).encode(SOURCE)
    event = json.loads(data)
    assert "url" not in event["target"]
    assert len(data) < 2500


def test_blobs_have_blob_urls_also_over_tls() -> None:
    event = json.loads(
        event_of(Target(repository="a/b", digest=DIGEST, size=1), Asked(host="[::1]:5000", secure=True)).encode(SOURCE)
    )
    assert event["target"]["url"] == f"https://[::1]:5000/v2/a/b/blobs/{DIGEST}"


def test_an_envelope_holds_many() -> None:
    assert json.loads(envelope([b'{"id":"1"}', b'{"id":"2"}'])) == {"events": [{"id": "1"}, {"id": "2"}]}
