-- commit: write some records, their indexes and their events.
-- KEYS: event stream, then for each record: its hash, one sorted set per index entry, and its guard, if it has one
-- ARGV: a nonce, 'all' (everything or nothing) or 'each' (every record by itself), then for each record: expected version
--       ('0': must not exist), body ('' deletes), member, most members that the guard may have before ('' for no guard),
--       number e of events, number n of index entries, then e pairs of kind and event, then n scores ('' removes)
-- Returns a digit for each record: 1 written, 0 somebody else was faster, or the guard has no room.
-- The last nonces stay with the records: a client that lost the answer asks again and learns what it had won, even after
-- a few others have written the first of them.
local all = ARGV[2] == 'all'
local won = {}

-- Of this write alone: another of the same commit may have been at the record before it.
local function mine()
  return ARGV[1] .. ' ' .. #won
end

local function may(k, a, n)
  local stands = redis.call('HMGET', KEYS[k], 'version', 'nonce')
  if not all and stands[2] == mine() then return nil end
  if (stands[1] or '0') ~= ARGV[a] then return false end
  return ARGV[a + 3] == '' or redis.call('ZCARD', KEYS[k + n + 1]) < tonumber(ARGV[a + 3])
end

local function write(k, a, e, n)
  local body, member = ARGV[a + 1], ARGV[a + 2]
  if body == '' then
    redis.call('DEL', KEYS[k])
  elseif all then
    redis.call('HSET', KEYS[k], 'version', ARGV[a] + 1, 'body', body)
  else
    redis.call('HSET', KEYS[k], 'version', ARGV[a] + 1, 'body', body, 'nonce', mine())
  end
  for i = 1, n do
    local score = ARGV[a + 5 + 2 * e + i]
    if score == '' then redis.call('ZREM', KEYS[k + i], member) else redis.call('ZADD', KEYS[k + i], score, member) end
  end
  for i = 0, e - 1 do
    redis.call('XADD', KEYS[1], '*', 'kind', ARGV[a + 6 + 2 * i], 'event', ARGV[a + 7 + 2 * i])
  end
end

local function through(visit)
  local k, a = 2, 3
  while a <= #ARGV do
    local e, n = tonumber(ARGV[a + 4]), tonumber(ARGV[a + 5])
    if visit(k, a, e, n) == false then return false end
    k = k + 1 + n + (ARGV[a + 3] == '' and 0 or 1)
    a = a + 6 + 2 * e + n
  end
  return true
end

if not all then
  through(function(k, a, e, n)
    local free = may(k, a, n)
    if free then write(k, a, e, n) end
    won[#won + 1] = free == false and '0' or '1'
  end)
  return table.concat(won)
end
local nonces = redis.call('HGET', KEYS[2], 'nonces') or ''
local function count(digit)
  through(function() won[#won + 1] = digit end)
  return table.concat(won)
end
if string.find(nonces, ARGV[1], 1, true) then return count('1') end
if not through(function(k, a, _, n) return may(k, a, n) end) then return count('0') end
through(write)
if ARGV[4] ~= '' then redis.call('HSET', KEYS[2], 'nonces', string.sub(ARGV[1] .. ' ' .. nonces, 1, 68)) end  -- four of them
return count('1')
