"""The parameters of libpq in a DSN: honored, or refused by the constructor."""

import socket

import pytest

from acgsperf import ConnectionPool
from acgsperf.tiers.postgres import PostgresTier

# Every parameter that libpq 18 documents, but host, port, dbname, user and password: values that are honored, and
# values that are refused.
PARAMETERS = {
    "application_name": (["x"], []),
    "channel_binding": (["disable", "prefer"], ["require", "nonsense"]),
    "client_encoding": (["utf8", "UTF8", "UTF-8", "auto"], ["latin1", "nonsense"]),
    "connect_timeout": (["10"], ["0", "-1", "x", "1.5"]),
    "fallback_application_name": (["x"], []),
    "gssdelegation": (["0"], ["1"]),
    "gssencmode": (["disable", "prefer"], ["require"]),
    "gsslib": (["gssapi"], []),
    "hostaddr": ([], ["127.0.0.1"]),
    "keepalives": (["0", "1"], ["2", "x"]),
    "keepalives_count": (["0", "3"], ["-1", "x"]),
    "keepalives_idle": (["0", "30"], ["-1", "x"]),
    "keepalives_interval": (["0", "10"], ["-1", "x"]),
    "krbsrvname": (["postgres"], []),
    "load_balance_hosts": (["disable", "random"], ["nonsense"]),
    "max_protocol_version": (["3.0", "3.2", "latest"], ["2.0"]),
    "min_protocol_version": (["3.0"], ["3.2", "latest"]),
    "oauth_client_id": ([], ["x"]),
    "oauth_client_secret": ([], ["x"]),
    "oauth_issuer": ([], ["x"]),
    "oauth_scope": ([], ["x"]),
    "options": (["-c%20search_path%3Dfoo"], []),
    "passfile": (["/nonexistent"], []),
    "replication": (["false"], ["true", "database"]),
    "require_auth": ([], ["none", "password"]),
    "requirepeer": ([], ["postgres"]),
    "requiressl": (["0"], ["1"]),
    "scram_client_key": ([], ["x"]),
    "scram_server_key": ([], ["x"]),
    "service": (["x"], []),
    "servicefile": ([], ["/nonexistent"]),
    "ssl_max_protocol_version": (["TLSv1.3"], ["x"]),
    "ssl_min_protocol_version": (["TLSv1.2"], ["SSLv3"]),
    "sslcert": (["/nonexistent"], []),
    "sslcertmode": (["allow"], ["disable", "require"]),
    "sslcompression": (["0"], ["1"]),
    "sslcrl": (["/nonexistent"], []),
    "sslcrldir": ([], ["/nonexistent"]),
    "sslkey": (["/nonexistent"], []),
    "sslkeylogfile": ([], ["/nonexistent"]),
    "sslmode": (["disable"], ["nonsense"]),
    "sslnegotiation": (["postgres"], ["nonsense"]),
    "sslpassword": (["x"], []),
    "sslrootcert": (["/nonexistent"], ["system"]),
    "sslsni": (["1"], ["0"]),
    "target_session_attrs": (["any", "read-write", "primary", "prefer-standby"], ["nonsense"]),
    "tcp_user_timeout": (["0", "5000"], ["-1", "x"]),
}
HONOURED = [(name, value) for name, (values, _) in PARAMETERS.items() for value in values]
REFUSED = [(name, value) for name, (_, values) in PARAMETERS.items() for value in values]
# What libpq does not know, but some take for a parameter.
NOT_LIBPQ = ["statement_cache_size", "prepared_statement_cache_size", "command_timeout"]


def with_parameters(dsn, *parameters):
    return dsn + ("&" if "?" in dsn else "?") + "&".join(parameters)


@pytest.mark.parametrize(("name", "value"), HONOURED)
async def test_a_parameter_is_honoured(dsn, name, value):
    # A host that is a socket in the file system uses no TLS, so its files are not read.
    async with ConnectionPool(with_parameters(dsn, f"{name}={value}"), min_size=1, max_size=1) as pool:
        assert await pool.fetchval("SELECT 1") == 1


@pytest.mark.parametrize(("name", "value"), [*REFUSED, *((name, "0") for name in NOT_LIBPQ)])
def test_a_parameter_that_cannot_be_honoured_is_refused_by_name(name, value):
    dsn = f"postgresql://u:pa55word@h/db?{name}={value}"
    makers = (
        lambda: ConnectionPool(dsn),
        lambda: ConnectionPool("postgresql://h", replicas=[dsn]),
        lambda: PostgresTier(dsn),
    )
    for make in makers:
        with pytest.raises(ValueError, match=rf"^(dsn|replicas\[0\]|the DSN)(:| must) .*\b{name}\b") as refused:
            make()
        assert "pa55word" not in str(refused.value)
        assert f"={value}" not in str(refused.value)


async def test_settings_reach_the_session_and_stay_after_a_reset(dsn):
    query = ("options=-c%20search_path%3Dfoo", "fallback_application_name=fall%20back")
    async with ConnectionPool(with_parameters(dsn, *query), min_size=1, max_size=1) as pool:
        for _ in range(2):
            assert await pool.fetchval("SHOW search_path") == "foo"
            assert await pool.fetchval("SHOW application_name") == "fall back"
    query = ("fallback_application_name=no", "application_name=yes")
    async with ConnectionPool(with_parameters(dsn, *query), min_size=1, max_size=1) as pool:
        assert await pool.fetchval("SHOW application_name") == "yes"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (["keepalives_idle=30", "keepalives_interval=7", "keepalives_count=3"], (1, 30, 7, 3)),
        (["keepalives=1"], (1, None, None, None)),
        (["keepalives=0", "keepalives_idle=30"], (0, 30, None, None)),
        (["keepalives_idle=0"], (1, None, None, None)),
        ([], (0, None, None, None)),
    ],
)
async def test_keepalives_are_options_of_the_socket(proxy, opened, parameters, expected):
    address = with_parameters(proxy.dsn, *parameters, "tcp_user_timeout=5000")
    async with ConnectionPool(address, min_size=1, max_size=1, init=opened):
        sock = opened[0]._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == expected[0]
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        for name, value in zip(names, expected[1:], strict=True):
            assert value is None or sock.getsockopt(socket.IPPROTO_TCP, name) == value
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000


def test_the_connect_timeout_of_a_dsn_is_used_unless_there_is_an_option():
    dsn, other = "postgresql://h/db?connect_timeout=7", "postgresql://h/db?connect_timeout=8"
    pool = ConnectionPool(dsn, replicas=[other, "postgresql://h"])
    assert [each.options.connect_timeout for each in (pool, *pool.replicas)] == [7.0, 8.0, 5.0]
    pool = ConnectionPool(dsn, replicas=[other], connect_timeout=3)
    assert [each.options.connect_timeout for each in (pool, *pool.replicas)] == [3.0, 3.0]


def test_one_port_or_one_for_each_host():
    ConnectionPool("postgresql:///db?host=one,two&port=1,2")
    ConnectionPool("postgresql:///db?host=one,two&port=1")
    with pytest.raises(ValueError, match="got 3 hosts, 2 ports"):
        ConnectionPool("postgresql:///db?host=one,two,three&port=1,2")
