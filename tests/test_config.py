"""Configuration: what is taken, from where, and what a mistake is told."""

import json
import re
from pathlib import Path

import pytest

from ipfsreg.config import PUBLIC_BOOTSTRAPPERS, Config, load_config
from ipfsreg.config_checks import DEFAULT_TOPIC, parse_host_port
from ipfsreg.errors import ConfigError

KEY = "ab" * 32
PEER = "12D3KooWEZ4BxLMHaBzmMbCRAkbkD77nYwwmdLVe8F5DLKEsMZAV"
PRIVATE = f'[p2p]\nprotector_key = "{KEY}"\n'


def load(tmp_path: Path, text: str, **environment: str) -> Config:
    path = tmp_path / "node.toml"
    path.write_text(text)
    return load_config(path, environment)


def test_every_key_is_optional_in_a_private_swarm(tmp_path: Path) -> None:
    config = load(tmp_path, PRIVATE)
    assert config.node.datastore_path == "/var/lib/ipfsreg"
    assert config.p2p.listen_addrs == ("/ip4/0.0.0.0/tcp/4619",)
    assert config.crdt.pubsub_topic == DEFAULT_TOPIC
    assert config.http.listen == ("127.0.0.1:5000",)
    assert config.bootstrappers == ()


def test_the_public_network_has_public_bootstrappers(tmp_path: Path) -> None:
    assert load(tmp_path, '[crdt]\npubsub_topic = "mine"').bootstrappers == PUBLIC_BOOTSTRAPPERS


def test_bootstrappers_can_be_none_on_the_public_network(tmp_path: Path) -> None:
    assert load(tmp_path, '[crdt]\npubsub_topic = "mine"\n[p2p]\nbootstrappers = []').bootstrappers == ()


def test_the_default_topic_is_refused_on_the_public_network(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"crdt\.pubsub_topic.*protector_key"):
        load(tmp_path, "")


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        PRIVATE + '[node]\nlog_level = "error"',
        IPFSREG_NODE_LOG_LEVEL="debug",
        IPFSREG_P2P_LISTEN_ADDRS="/ip4/127.0.0.1/tcp/1, /ip4/127.0.0.1/tcp/2",
        IPFSREG_FETCH_GIVE_UP_S="2.5",
        IPFSREG_FETCH_FINISH_WITHOUT_CLIENT="false",
    )
    assert config.node.log_level == "debug"
    assert config.p2p.listen_addrs == ("/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2")
    assert config.fetch.give_up_s == 2.5
    assert config.fetch.finish_without_client is False


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[p2p]\nlisten = "x"', r"p2p\.listen = '…': no such key; \[p2p\] has listen_addrs"),
        ("[shop]\n", "shop.*no such section"),
        ("node = 3", r"write \[node\]"),
        ("[http]\nlisten = 5", r'http\.listen = 5: must be a list of texts, as \["127\.0\.0\.1:5000"\]'),
        ("[http]\nlisten = [5]", r"http\.listen\[0\] = 5: must be a list of texts"),
        ("[http]\nlisten = []", r"http\.listen = \[\]: at least one"),
        ("[p2p]\nbootstrappers = 5", r"p2p\.bootstrappers = 5: must be a list of texts"),
        ('[http]\nlisten = ["localhost"]', "127.0.0.1:5000"),
        ('[http]\nlisten = ["127.0.0.1:70000"]', "127.0.0.1:5000"),
        ('[http]\nlisten = ["https://127.0.0.1:5000"]', "needs a certificate: set http.tls_certificate"),
        ('[node]\nlog_level = "loud"', r"node\.log_level = 'loud': must be one of debug, info"),
        ('[node]\ndrain_s = "20"', r"node\.drain_s = '20': must be a number"),
        ("[node]\ndrain_s = inf", "seconds from 0 to 3600"),
        ("[fetch]\nfinish_without_client = 1", "must be true or false"),
        ("[node]\nprivate_key = 5", "must be text in quotes"),
        ('[p2p]\nlisten_addrs = ["0.0.0.0:4619"]', "looks like /ip4/0.0.0.0/tcp/4619"),
        ('[p2p]\nbootstrappers = ["/ip4/127.0.0.1/tcp/4619"]', "/p2p/<peer ID>"),
        (f'[p2p]\nbootstrappers = ["/ip4/127.0.0.1/tcp/4619/p2p/{PEER}/p2p-circuit"]', "must end in /p2p/<peer ID>"),
        ('[p2p]\nprotector_key = "a\\u0000b"', "64 hex digits"),
        ('[node]\ndatastore_path = "a\\u0000b"', "must be a directory"),
        ("[fetch]\ngive_up_s = -1", "seconds above 0"),
        ("[fetch]\nupload_bytes_per_s = 100", "bytes a second from 65536"),
        ("[fetch]\nupload_bytes_per_s = -1", "0 for no limit"),
        ("[http]\nrequests_at_once = 1.5", r"http\.requests_at_once = 1\.5: must be a whole number"),
        ('[http]\ntrusted_proxies = ["proxy.example"]', "an address or a network, as 127.0.0.1"),
        ("[http]\nrequests_burst = 0", "a number from 1 to 1000000"),
        ("[auth]\ntoken_s = 5", r"auth\.token_s = 5\.0: seconds from 10 to 86400"),
        ("[auth]\nfailed_logins_per_min = -1", "a number from 0"),
        ('[auth]\nservice = "a\\"b"', "letters, digits"),
        ('[auth]\nrealm = "registry.example/token"', "a URL, as https://registry.example/token"),
        ('[auth]\nadmins = ["*"]', "not everybody can be one"),
        ('[auth]\nadmins = ["@team"]', r"auth\.admins = '@team': no such group; \[\[auth\.groups\]\] has none"),
        ('[[auth.rules]]\nrepositories = "*"\npush = ["@a"]', r"auth\.rules\.push = '@a': no such group"),
        ('[[auth.rules]]\npush = ["a"]', r"must be tables, each as \[\[auth\.rules\]\]"),
        ('[[auth.groups]]\nname = "a"\nusers = ["@b"]', "the name of a user"),
        ('[[auth.issuers]]\nissuer = "a"\njwks = "http://b.example/keys"', "the path of a file, or an https URL"),
        ("[fetch]\ngive_up_s = nan", "seconds above 0"),
        ("[node", "is not TOML"),
        ('[node]\ndatastore_path = ""', "a directory"),
        ("[node]\nunready_s = -1", "node.unready_s = -1.0: seconds from 0 to 3600"),
        ('[access_log]\nformat = "xml"', "access_log.format = 'xml': must be one of text, combined, json, off"),
        ('[access_log]\npath = "a\\u0000b"', "the path of a file"),
        ("[tracing]\nsample_ratio = 2", "tracing.sample_ratio = 2.0: a number from 0 to 1"),
        ('[tracing]\nendpoint = "127.0.0.1:4318"', r"tracing.endpoint = '…': http:// or https://"),
        ("[tracing]\nheaders = {A = 5}", "must be a table of texts, as"),
        ('[tracing]\nheaders = {"A B" = "x"}', "names and values of headers"),
        (
            '[metrics]\nlisten = ["127.0.0.1:5000"]',
            r"metrics\.listen = '127.0.0.1:5000': is where clients come already",
        ),
        ('[registry]\nimmutable_tags = ["v1"]', r"immutable_tags = 'v1': fits no tag"),
        ('[metrics]\nlisten = ["5001"]', r"metrics.listen = '5001': an address and a port"),
    ],
)
def test_a_mistake_names_the_key_and_what_would_be_right(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(tmp_path, text, IPFSREG_CRDT_PUBSUB_TOPIC="mine")


@pytest.mark.parametrize(
    "text",
    [
        f'[p2p]\nprotecter_key = "{KEY}"',
        f'[p2p]\nprotector_key = ["{KEY}"]',
        f'[p2pp]\nprotector_key = "{KEY}"',
        f'[node]\nprivate_key = ["{KEY}"]',
        f'p2p = "{KEY}"',
    ],
)
def test_a_mistake_beside_a_secret_does_not_show_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as told:
        load(tmp_path, text, IPFSREG_CRDT_PUBSUB_TOPIC="mine")
    assert KEY not in str(told.value)


def test_a_mistyped_secret_in_the_environment_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="IPFSREG_P2P_PROTECTER_KEY") as told:
        load(tmp_path, "", IPFSREG_P2P_PROTECTER_KEY=KEY)
    assert KEY not in str(told.value)


def test_metrics_may_have_any_free_port_beside_clients_who_have(tmp_path: Path) -> None:
    text = PRIVATE + '[http]\nlisten = ["127.0.0.1:0"]\n[metrics]\nlisten = ["127.0.0.1:0"]'
    assert load(tmp_path, text).metrics.listen == ("127.0.0.1:0",)


def test_a_mistyped_environment_key_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="IPFSREG_P2P_LISTEN "):
        load(tmp_path, PRIVATE, IPFSREG_P2P_LISTEN="x")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("FETCH_GIVE_UP_S", "soon", "IPFSREG_FETCH_GIVE_UP_S = 'soon': must be a number"),
        ("FETCH_FINISH_WITHOUT_CLIENT", "yes", "must be true or false"),
        ("NODE_LOG_LEVEL", "", "must be one of debug"),
        ("HTTP_LISTEN", " , ", "at least one"),
    ],
)
def test_a_bad_value_in_the_environment_is_told_by_its_name_there(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        load(tmp_path, PRIVATE, **{f"IPFSREG_{name}": text})


def test_every_key_can_come_from_the_environment(tmp_path: Path) -> None:
    default = load(tmp_path, PRIVATE)
    values = {
        "log_level": "error",
        "untagged": "delete",
        "evict": "nothing",
        "bootstrappers": f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}",
        "announce_addrs": "/ip4/1.1.1.1/tcp/1",
        "format": "json",
        "immutable_tags": "team/*:v*",
        "upload_expiry_s": "60.5",
        "upload_bytes_per_s": "1000000",
    }
    values |= {"listen_addrs": "/ip4/127.0.0.1/tcp/9", "trusted_peers": PEER, "listen": "127.0.0.1:1, [::1]:2"}
    values["writers"] = json.dumps([{"repositories": "team/*", "peers": [PEER]}])
    values |= {"token_s": "60", "realm": "https://registry.example/token", "rules": '[{"repositories": "*"}]'}
    values["quotas"] = '[{"repositories": "team/*", "max_bytes": 1}]'
    values["trusted_proxies"] = "127.0.0.1, 10.0.0.0/8"
    values["groups"] = '[{"name": "team", "users": ["alice"]}]'
    values["issuers"] = '[{"issuer": "https://login.example", "jwks": "/keys.json"}]'
    values |= {"headers": '{"Authorization": "x"}', "endpoint": "http://127.0.0.1/", "sample_ratio": "0.5"}
    values["endpoints"] = json.dumps([{"name": "ci", "url": "https://ci.example/"}])
    for section in default.__struct_fields__:
        for key in getattr(default, section).__struct_fields__:
            before = getattr(getattr(default, section), key)
            other = {bool: str(not before), float: "3.5", int: "3"}.get(type(before), "cd" * 32)
            text = values.get(key, other)
            changed = load(tmp_path, PRIVATE, **{f"IPFSREG_{section}_{key}".upper(): text})
            assert getattr(getattr(changed, section), key) not in (before, None), key


def test_writers_are_tables_with_peers_and_former_ones(tmp_path: Path) -> None:
    text = (
        PRIVATE
        + f"""
[[crdt.writers]]
repositories = "team/*"
peers = ["{PEER}"]
former = [{{peer = "{PEER}", heads = ["bafy"]}}]
"""
    )
    (rule,) = load(tmp_path, text).crdt.writers
    assert (rule.repositories, rule.peers, rule.former[0].peer, rule.former[0].heads) == (
        "team/*",
        (PEER,),
        PEER,
        ("bafy",),
    )


@pytest.mark.parametrize("entry", ["peers = []", 'repositories = "x"', 'repositories = "x"\npeers = []\npeer = 1'])
def test_a_writers_table_that_lacks_something_or_has_too_much_is_told(tmp_path: Path, entry: str) -> None:
    with pytest.raises(ConfigError, match=r"crdt.writers\[0\].*must be tables, each as \[\[crdt.writers\]\]"):
        load(tmp_path, PRIVATE + "[[crdt.writers]]\n" + entry)
    with pytest.raises(ConfigError, match="must be JSON"):
        load(tmp_path, PRIVATE, IPFSREG_CRDT_WRITERS="team/*")


ENDPOINT = '[[notifications.endpoints]]\nname = "ci"\nurl = "https://ci.example/hook"\n'


def test_an_endpoint_needs_a_name_and_a_url(tmp_path: Path) -> None:
    (endpoint,) = load(tmp_path, PRIVATE + ENDPOINT + 'headers = {Authorization = "Bearer x"}').notifications.endpoints
    assert (endpoint.name, endpoint.url, endpoint.headers) == (
        "ci",
        "https://ci.example/hook",
        {"Authorization": "Bearer x"},
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[notifications.endpoints]]\nname = "ci"', "must be tables, each as"),
        (ENDPOINT + "headers = {Authorization = 5, X = 's3cret'}", "must be tables, each as"),
        (ENDPOINT + "headers = {'A B' = 's3cret'}", "names and values of headers"),
        (ENDPOINT + 'headers = {A = "s3cret\\n"}', "names and values of headers"),
        (ENDPOINT.replace('"ci"', '"c i"'), "letters, digits"),
        (ENDPOINT + ENDPOINT, "each endpoint has a name of its own"),
        (ENDPOINT.replace("https://", "ftp://s3cret@"), "http:// or https://"),
        (ENDPOINT.replace("https://", "https://u:s3cret@"), "no user or password"),
        (ENDPOINT.replace("ci.example", "ci.example:99999"), "http:// or https://"),
        (ENDPOINT + 'ignore_actions = ["tag"]', "push, pull, mount, delete"),
        (ENDPOINT + "timeout_s = 0", "seconds above 0 and at most 300"),
        (ENDPOINT + "backoff_s = -1", "seconds above 0 and at most 86400"),
        (ENDPOINT + "threshold = 0", "1 to 1000 failures"),
        (ENDPOINT + "max_queued = 0", "1 to 1000000 events"),
    ],
)
def test_a_mistake_in_an_endpoint_is_told_without_its_secrets(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        load(tmp_path, PRIVATE + text)
    assert "s3cret" not in str(caught.value)


def test_endpoints_that_are_no_json_are_told_without_their_secrets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be JSON") as caught:
        load(tmp_path, PRIVATE, IPFSREG_NOTIFICATIONS_ENDPOINTS='{"s3cret"')
    assert "s3cret" not in str(caught.value)


def test_what_kubernetes_says_of_a_service_of_our_name_is_no_key(tmp_path: Path) -> None:
    says = {"SERVICE_HOST": "10.0.0.1", "SERVICE_PORT_HTTP": "80", "PORT": "tcp://x", "PORT_80_TCP_ADDR": "10.0.0.1"}
    load(tmp_path, PRIVATE, **{f"IPFSREG_NODE_{name}": text for name, text in says.items()})


def test_a_file_nested_too_deeply_is_told(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("[p2p]\nlisten_addrs = " + "[" * 10_000)
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_config(path, {})


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.toml", {})


@pytest.mark.parametrize(("text", "parts"), [("127.0.0.1:5000", ("127.0.0.1", 5000)), ("[::1]:0", ("::1", 0))])
def test_host_and_port_are_read(text: str, parts: tuple[str, int]) -> None:
    assert parse_host_port("http.listen", text) == parts


@pytest.mark.parametrize("text", ["127.0.0.1", "::1:5000", "127.0.0.1:65536", "127.0.0.1:" + "1" * 5000])
def test_what_is_no_host_and_port_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="an address and a port"):
        parse_host_port("http.listen", text)


def test_every_key_is_documented_with_its_default_and_its_name_in_the_environment() -> None:
    text = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    found = re.findall(r"^\| `(\w+)` \| .+? \| (.+?) \| `(\w+)` \|$", text, re.MULTILINE)
    rows = {name: (key, shown) for key, shown, name in found}
    default = Config()
    keys = [
        (section, key) for section in default.__struct_fields__ for key in getattr(default, section).__struct_fields__
    ]
    assert len(rows) == len(keys)
    for section, key in keys:
        assert f"## `[{section}]`" in text
        told, shown = rows[f"IPFSREG_{section}_{key}".upper()]
        assert told == key
        value = getattr(getattr(default, section), key)
        assert shown == ("see below" if value is None else f"`{json.dumps(value)}`")
