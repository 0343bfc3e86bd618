"""The compiled part of RESP2 and its twin."""

import pytest
from conftest import IMPLEMENTATIONS, imported
from hiredis import pack_command
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="session", params=IMPLEMENTATIONS)
def resp(request):
    return imported("resp", request.param)


@given(
    addresses=st.lists(st.one_of(st.binary(max_size=30), st.binary(min_size=95, max_size=105)), max_size=120),
    prefix=st.binary(max_size=20),
    last=st.binary(max_size=200),
)
def test_it_packs_as_hiredis_does(resp, addresses, prefix, last):
    expected = pack_command(("MGET", *(prefix + address for address in addresses), last))
    assert resp.mget(addresses, prefix, last, 200) == expected


def test_an_address_may_be_as_long_as_the_limit(resp):
    assert resp.mget([b"a" * 200, b""], b"p:", b"t", 200) == pack_command(("MGET", b"p:" + b"a" * 200, b"p:", b"t"))


def test_a_longer_address_is_not_packed(resp):
    assert resp.mget([b"a", b"b" * 201], b"p:", b"t", 200) is None


@pytest.mark.parametrize("address", ["text", 1, None])
def test_an_address_must_be_bytes(resp, address):
    with pytest.raises(TypeError):
        resp.mget([b"a", address], b"p:", b"t", 200)


def test_the_former_addresses_are_unchanged(resp):
    addresses = [b"a", b"b"]
    resp.mget(addresses, b"p:", b"t", 200)
    assert addresses == [b"a", b"b"]


@pytest.mark.parametrize(
    "data",
    [
        *(b"*1000000", b"*9999999999\r\n", b"x\n*1234567", b"*123456\n*1234567x", b"\n" * 50 + b"*0000000"),
        *(b"*12345\r\n*1234567", b"\0\n*0000000\0", b"~1234567", b">1234567", b"*1\r\n|1234567\r\n"),
    ],
)
def test_a_long_array_is_found(resp, data):
    assert resp.has_long_array(data) is True


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"*", b"*999999", b"*999999\r\n", b"*123456a7", b"1234567", b"$1234567\r\n", b"*-1234567"),
        *(b"*" * 50, b"*123456" * 3, b"*12345\xb27", b"x*1234567", b"**1234567", b"\n" * 50, b"\n*123456"),
    ],
)
def test_anything_else_is_none(resp, data):
    assert resp.has_long_array(data) is False


@given(
    data=st.lists(
        st.sampled_from([b"*", b"~", b">", b"|", b"1", b"99999", b"1234567", b"\r\n", b"\n", b"a", b"\0"]), max_size=12
    ).map(b"".join)
)
def test_both_find_the_same(data):
    found = {imported("resp", name).has_long_array(data) for name in IMPLEMENTATIONS}
    assert len(found) == 1
