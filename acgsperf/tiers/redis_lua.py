"""What the scripts of the Redis tier have in common: functions in Lua, and the class of a script."""

import hashlib
from typing import Final, NamedTuple

__all__ = ["Script", "script"]


class Script(NamedTuple):
    """A script, and the name by which the server knows it once it has run it."""

    name: str
    text: bytes
    sha: str


# `header` returns the start of what is stored, if it is of this version.
_COMMON: Final = """
local at = 0
local function take() at = at + 1; return ARGV[at] end
local function take_number() return tonumber(take()) end
local function take_records() local first, count = at + 2, take_number(); at = at + count; return first end
local function clock() local time = redis.call('TIME'); return time[1] * 1000000 + time[2] end
-- A replica refuses every write. This ends the script, because its other results may be out of date.
local function failed(reply)
    local problem = type(reply) == 'table' and reply.err
    if problem and string.find(problem, 'READONLY', 1, true) then error(problem, 0) end
    return problem
end
-- Ends a script that may have nothing to write if the server is a replica.
local function check_role(key) failed(redis.pcall('PEXPIRE', key, 2592000000)) end
-- A value of another type counts as absent. Any other error, such as a missing right, ends the script.
local function read(...)
    local reply = redis.pcall(...)
    if failed(reply) and not string.find(reply.err, 'WRONGTYPE', 1, true) then error(reply.err) end
    return reply
end
local function header(key, last)
    local value = read('GETRANGE', key, 0, last)
    if type(value) == 'string' and #value >= 17 and string.find(value, '^[ETM]', 17)
        and (#value == 17 or string.byte(value, 18) == 2) then return value end
end
local function id(value) return string.sub(value, 1, 8) end
local function stamp(value)
    local found = struct.unpack('>I8', value, 9)
    return found < 9007199254740992 and found or 0
end
local function kind(value) return string.sub(value, 17, 17) end
local function is_live(value, now)
    return kind(value) == 'E' and #value >= 48 and struct.unpack('<d', value, 41) > now / 1000000
end
local function newer(old, new, now)
    local found = old and stamp(old) or 0
    return old and found >= stamp(new) and found < now + 86400000000 and id(old) ~= id(new)
end
local function parts_of_lock(key)
    local value = read('GET', key)
    return string.match(type(value) == 'string' and value or '', '^(%d+):([^+]+)(%+?)')
end
local function put(key, value, px)
    if px == '' then return redis.pcall('SET', key, value) end
    return redis.pcall('SET', key, value, 'PX', px)
end
local function extend(key, px)
    local left = redis.call('PTTL', key)
    if left >= 0 and left < tonumber(px) then redis.call('PEXPIRE', key, px) end
end
local function current(key)
    local value = read('GET', key)
    if type(value) == 'string' and #value >= 8 and #value <= 17 then return value end
end
local function run()
    local info = redis.pcall('INFO', 'server')
    local found = type(info) == 'string' and string.match(info, 'run_id:(%w+)')
    return found and string.sub(redis.sha1hex(found), 1, 8)
end
-- The token of a namespace contains the run of the server.
local function of_namespace(new) return new .. (run() or '--------') end
local function token(key, new, px, is_namespace)
    local value = current(key)
    if value then return value end
    if is_namespace then new = of_namespace(new) end
    redis.call('SET', key, new, 'PX', px)
    return new
end
local function add(log, record)
    -- A record of many keys is large. The log has 20 MB at most.
    local most = math.max(20, math.min(10000, math.floor(20000000 / #record)))
    return redis.pcall('XADD', log, 'MAXLEN', '~', most, '*', 'r', record)
end
-- Returns the time, negative if there was nothing to publish or it has failed.
local function publish(log, first, now)
    local count, done = tonumber(ARGV[first - 1]), 1
    -- After this command, which needs no memory, a server that is full accepts one that does.
    if count > 0 then check_role(log) end
    for i = first, first + count - 1 do
        if failed(add(log, ARGV[i])) then
            redis.pcall('UNLINK', log)
            if failed(add(log, ARGV[i])) then done = 0 end
        end
    end
    return count > 0 and done == 1 and now or -now
end
"""


def script(name: str, text: str) -> Script:
    """Return a script that may use the functions above."""
    whole = (_COMMON + text).encode()
    # Redis names scripts by their SHA-1.
    return Script(name, whole, hashlib.sha1(whole, usedforsecurity=False).hexdigest())
