"""The scripts of the Redis tier.

Every script that writes entries takes several keys. It checks the server's time once: after the deadline it answers
with the time alone, and does nothing. Otherwise its reply has the time, negative if the record was not published, and
one item for each key: -1 done, -2 done and a live entry was removed, or an error. A stamp in its place says that the
tier has something newer.

A server without free memory refuses a command that needs some, unless the script has written already. A
tombstone must be stored even then, so its script removes the key first. Every other script writes its entry first, so
that the server refuses it.

Stamps are compared as numbers, because Lua compares strings in the order of the server's locale. A stamp beyond 53 bits
comes from no tier, and counts as 0. A stamp more than a day ahead of the server's clock supersedes nothing: it may come
from a value of an older version, which looks like an envelope by chance.

A token lives as long as its longest entry. If that has no expiration, the token lives for 30 days, and is renewed when
it is used. If nobody has used it for so long, the entry becomes a miss.

Another program may have written to any of the keys. A value of another type, or one that cannot be a token or a lock,
counts as absent, and the next write replaces it. A log to which nothing can be added, because it is no stream or has
the greatest possible id, is removed. This is a gap: records may be missed, and every cache verifies its L1.

On a replica, each script that writes ends with the error READONLY, also if it finds nothing to write there. The caller
then looks for the primary.
"""

from typing import Final

from acgsperf.tiers.redis_lua import Script, script

__all__ = [
    "ADOPT",
    "EXPIRE",
    "EXPIRE_TAG",
    "GENERATION",
    "INVALIDATE",
    "LOCK",
    "OBSERVE",
    "RENEW",
    "STORE",
    "SWEEP",
    "TOMBSTONE",
    "UNDO",
    "UNLOCK",
    "WRITE",
    "Script",
]


# KEYS: log, token, entries, tags.
# ARGV: entries, deadline, lifetime of lasting tokens, new token, records; for each entry: head, tail, lifetime or
# nothing, its tags as positions among the tags.
WRITE: Final = script(
    "WRITE",
    """
local n, deadline, now = take_number(), take_number(), clock()
if now > deadline then return {now} end
local lasting_px, new = take(), take()
local records, results = take_records(), {}
local namespace = id(token(KEYS[2], new, lasting_px, true))
for i = 1, n do
    local key, head, tail, px, tags = KEYS[2 + i], take(), take(), take(), take()
    local old = header(key, 17)
    if newer(old, head, now) then
        results[1 + i] = stamp(old)
    else
        local tokens, token_px = {namespace}, px ~= '' and px or lasting_px
        for j = 1, #tags, 2 do
            tokens[#tokens + 1] = id(token(KEYS[2 + n + struct.unpack('>H', tags, j)], new, token_px))
        end
        local done = put(key, head .. table.concat(tokens) .. tail, px)
        results[1 + i] = failed(done) and done or -1
        if not failed(done) then
            for j = 1, #tags, 2 do extend(KEYS[2 + n + struct.unpack('>H', tags, j)], token_px) end
            if tonumber(token_px) > tonumber(lasting_px) then extend(KEYS[2], token_px) end
        end
    end
end
results[1] = publish(KEYS[1], records, now)
return results
""",
)

# KEYS: log, entries. ARGV: entries, deadline, lifetime, records; for each entry: id and stamp.
TOMBSTONE: Final = script(
    "TOMBSTONE",
    """
local n, deadline, now = take_number(), take_number(), clock()
if now > deadline then return {now} end
local px, records, results = take(), take_records(), {}
for i = 1, n do
    local key, head = KEYS[1 + i], take()
    local old = header(key, 47)
    if newer(old, head, now) then
        results[1 + i] = stamp(old)
    else
        redis.pcall('UNLINK', key)
        local done = put(key, head .. 'T', px)
        results[1 + i] = failed(done) and done or old and is_live(old, now) and -2 or -1
    end
end
results[1] = publish(KEYS[1], records, now)
return results
""",
)

# Makes entries stale from now on: it replaces the time until which they are fresh. A marker or a tombstone gets the new
# id, so that a load that has observed the former id is not stored.
# KEYS: log, entries. ARGV: entries, deadline, lifetime of markers, records; for each entry: id and stamp.
EXPIRE: Final = script(
    "EXPIRE",
    """
local n, deadline, now = take_number(), take_number(), clock()
if now > deadline then return {now} end
local px, records, results = take(), take_records(), {}
for i = 1, n do
    local key, head = KEYS[1 + i], take()
    local old, done = header(key, 47), true
    if newer(old, head, now) then
        results[1 + i] = stamp(old)
    else
        if old and kind(old) == 'E' and #old >= 48 then
            done = redis.pcall('SETRANGE', key, 0, head)
            if not failed(done) and struct.unpack('<d', old, 33) > now / 1000000 then
                done = redis.pcall('SETRANGE', key, 32, struct.pack('<d', now / 1000000))
            end
        elseif old then
            done = put(key, head .. kind(old), px)
        end
        results[1 + i] = failed(done) and done or -1
    end
end
check_role(KEYS[1])
results[1] = publish(KEYS[1], records, now)
return results
""",
)

# KEYS: log, entries. ARGV: entries, lifetime, records; for each entry: the id to remove, the id of the tombstone.
UNDO: Final = script(
    "UNDO",
    """
local n, now, px = take_number(), clock(), take()
local records, results = take_records(), {}
for i = 1, n do
    local key, unwanted, new = KEYS[1 + i], take(), take()
    local old = header(key, 47)
    results[1 + i] = -1
    if old and id(old) == unwanted then
        redis.pcall('UNLINK', key)
        local done = put(key, new .. string.sub(old, 9, 16) .. 'T', px)
        results[1 + i] = failed(done) and done or is_live(old, now) and -2 or -1
    end
end
check_role(KEYS[1])
results[1] = publish(KEYS[1], records, now)
return results
""",
)

# If the server has no memory for a token, the observed token is empty. No store compares equal with that.
# KEYS: token, invalidations, tags, entries.
# ARGV: tags, entries, lifetime, new token, lifetime of the first two, new ids.
OBSERVE: Final = script(
    "OBSERVE",
    """
local m, n, px = take_number(), take_number(), take()
local new, namespace_px, ids = take(), take(), take()
local function seen(key, lifetime, is_namespace)
    local value = current(key)
    if value then return value end
    value = is_namespace and of_namespace(new) or new
    return not failed(put(key, value, lifetime)) and value or ''
end
local results = {seen(KEYS[1], namespace_px, true), seen(KEYS[2], namespace_px)}
for i = 1, m do
    results[2 + i] = seen(KEYS[2 + i], px)
    extend(KEYS[2 + i], px)
end
for i = 1, n do
    local key = KEYS[2 + m + i]
    local value = header(key, 17)
    if value then
        extend(key, px)
    else
        value = string.sub(ids, 8 * i - 7, 8 * i) .. string.rep('\\0', 8) .. 'M'
        local done = put(key, value, px)
        if failed(done) then value = done end
    end
    results[2 + m + i] = type(value) == 'string' and string.sub(value, 1, 17) or value
end
return results
""",
)

# KEYS: log, token, invalidations, entries, tags.
# ARGV: entries, lifetime of lasting tokens, new token of tags; for each entry: kind, observed id or the server's
# run and last position of the log, observed tokens, observed invalidations or nothing, time limit, head, tail,
# lifetime, its tags as positions. Kinds: T compares the tokens of all tags. I compares the invalidations. C compares
# them too, and requires that the slower tier has refused no invalidation. D requires that the key is absent, that the
# server was not restarted, and that the log has no later record. After a restart from a snapshot the log may have lost
# its last records, and then it ends at a position that the process knows.
# Results: -1 stored, 0 superseded.
STORE: Final = script(
    "STORE",
    """
local n, now = take_number(), clock()
local lasting_px, new = take(), take()
local results = {0}
local namespace = current(KEYS[2]) or ''
local function counted(value) return string.char(#value) .. value end
local function last_position()
    local last = read('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
    return last[1] and string.sub(namespace, 9, 16) .. last[1][1] or ''
end
local function refused_below(value) return #value % 2 == 1 end
for i = 1, n do
    local key, compare, seen, tokens, invalidations = KEYS[3 + i], take(), take(), take(), take()
    local limit = take_number()
    local head, tail, px, tags = take(), take(), take(), take()
    local names, values, refused = {}, {}, false
    for j = 1, #tags, 2 do
        names[#names + 1] = KEYS[3 + n + struct.unpack('>H', tags, j)]
        values[#values + 1] = current(names[#names]) or ''
        refused = refused or refused_below(values[#values])
    end
    local is_current = now <= limit
    if compare == 'D' then
        is_current = is_current and namespace ~= '' and redis.call('EXISTS', key) == 0
        is_current = is_current and seen ~= '' and last_position() == seen
    else
        local old = header(key, 17)
        local found = counted(namespace)
        if compare == 'T' then
            for j = 1, #values do
                is_current = is_current and values[j] ~= ''
                found = found .. counted(values[j])
            end
        elseif #values > 0 then
            is_current = is_current and invalidations ~= '' and current(KEYS[3]) == invalidations
        end
        is_current = is_current and old and id(old) == seen and found == tokens and namespace ~= ''
    end
    if compare == 'C' or compare == 'D' then
        is_current = is_current and not refused and not refused_below(namespace)
    end
    if not is_current then
        results[1 + i] = 0
    else
        local parts, token_px = {id(namespace)}, px ~= '' and px or lasting_px
        for j = 1, #names do
            if values[j] == '' then values[j] = token(names[j], new, token_px) end
            parts[#parts + 1] = id(values[j])
        end
        local done = put(key, head .. table.concat(parts) .. tail, px)
        results[1 + i] = failed(done) and done or -1
        if not failed(done) then
            for j = 1, #names do extend(names[j], token_px) end
            if tonumber(token_px) > tonumber(lasting_px) then extend(KEYS[2], token_px) end
        end
    end
end
return results
""",
)

# An entry whose token is gone is a miss, so an invalidation needs no memory. If the slower tier has refused the
# invalidation, the new token says so.
# KEYS: log, token, invalidations. ARGV: deadline, new token of a tag or of the namespace or nothing, whether it is the
# namespace's, its lifetime, records.
INVALIDATE: Final = script(
    "INVALIDATE",
    """
local deadline, now = take_number(), clock()
if now > deadline then return {now} end
local new, is_namespace, px, records = take(), take() == '1', take(), take_records()
redis.call('UNLINK', KEYS[2], KEYS[3])
if new ~= '' then
    if is_namespace then new = of_namespace(new) end
    redis.call('SET', KEYS[2], new .. 'R', 'PX', px)
end
return {publish(KEYS[1], records, now), -1}
""",
)

# KEYS: log, token. ARGV: deadline, records.
EXPIRE_TAG: Final = script(
    "EXPIRE_TAG",
    """
local deadline, now = take_number(), clock()
if now > deadline then return {now} end
local records, value = take_records(), current(KEYS[2])
if value then
    local refused = #value % 2 == 1 and 'R' or ''
    local done = redis.pcall('SET', KEYS[2], id(value) .. struct.pack('>I8', now) .. refused, 'KEEPTTL')
    if failed(done) then redis.call('UNLINK', KEYS[2]) end
end
check_role(KEYS[1])
return {publish(KEYS[1], records, now), -1}
""",
)

# Removes entries of a former token of the namespace, and of other versions.
# KEYS: token, entries. Results: -2 a live entry was removed, -1 another was, 0 it was kept.
SWEEP: Final = script(
    "SWEEP",
    """
local now, namespace, results = clock(), id(current(KEYS[1]) or ''), {0}
for i = 2, #KEYS do
    local value = header(KEYS[i], 67)
    if value and (kind(value) ~= 'E' or string.sub(value, 61, 68) == namespace) then
        results[i] = 0
    else
        local gone = redis.call('UNLINK', KEYS[i]) == 1
        results[i] = gone and ((not value or is_live(value, now)) and -2 or -1) or 0
    end
end
return results
""",
)

# The token of a namespace says which run of the server it belongs to. After a restart from a snapshot, or a failover,
# the server may lack acknowledged writes.
# KEYS: token, invalidations, fence. ARGV: lifetime. Returns 8 bytes for this run; nothing if they are unknown.
GENERATION: Final = script(
    "GENERATION",
    """
local px, found, value = take(), run(), current(KEYS[1])
if found and value and string.sub(value, 9, 16) ~= found then redis.call('UNLINK', KEYS[1], KEYS[2]) end
extend(KEYS[1], px)
for i = 2, 3 do redis.call('PEXPIRE', KEYS[i], px) end
return found or ''
""",
)

# The same for a node of a cluster that took over a slot. If another node has passed the slot on, and is still the same
# run that the token belongs to, nothing was lost. Otherwise the slot comes from a primary that has died.
# KEYS: token. ARGV: lifetime, the runs of the other primaries. Returns as GENERATION does.
ADOPT: Final = script(
    "ADOPT",
    """
local px, others, found, value = take(), take(), run(), current(KEYS[1])
local former = value and string.sub(value, 9, 16)
if found and value and former ~= found then
    if #former == 8 and string.find(others, former, 1, true) then
        local new = id(value) .. found .. string.sub(value, 17)
        if failed(redis.pcall('SET', KEYS[1], new, 'KEEPTTL')) then redis.call('UNLINK', KEYS[1]) end
    else
        redis.call('UNLINK', KEYS[1])
    end
end
extend(KEYS[1], px)
return found or ''
""",
)

# Renews the tokens of entries without an expiration, because they are in use. KEYS: tokens. ARGV: lifetime.
RENEW: Final = script(
    "RENEW",
    """
local px = take()
for i = 1, #KEYS do extend(KEYS[i], px) end
return 1
""",
)

# The value of a lock is its token, its owner, and a + for each caller that waits; the script recognizes a repeated
# command by the owner. A token is at least the clock in microseconds, so that tokens keep growing even if the server
# has lost the counter.
# KEYS: lock, fence. ARGV: lifetime of the lock, owner, lifetime of the counter.
LOCK: Final = script(
    "LOCK",
    """
local px, owner, fence_px = take(), take(), take()
local number, holder, waiting = parts_of_lock(KEYS[1])
if number then
    if holder == owner then return tonumber(number) end
    if waiting == '' then failed(redis.pcall('APPEND', KEYS[1], '+')) else check_role(KEYS[2]) end
    return 0
end
local last = read('GET', KEYS[2])
last = type(last) == 'string' and tonumber(last) or 0
number = math.max(last < 9007199254740991 and last + 1 or 0, clock())
number = string.format('%.0f', number)
redis.call('SET', KEYS[2], number, 'PX', fence_px)
redis.call('SET', KEYS[1], number .. ':' .. owner, 'PX', px)
return tonumber(number)
""",
)

# Releases by token or by owner. KEYS: lock, log. ARGV: token or owner, records.
UNLOCK: Final = script(
    "UNLOCK",
    """
local mine, records = take(), take_records()
local number, owner, waiting = parts_of_lock(KEYS[1])
if not number or (number ~= mine and owner ~= mine) then
    check_role(KEYS[2])
    return 0
end
redis.call('DEL', KEYS[1])
if waiting ~= '' then publish(KEYS[2], records, 0) end
return 1
""",
)
