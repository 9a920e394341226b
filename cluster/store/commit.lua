-- commit: write some records, their indexes and their events, or nothing.
-- KEYS: event stream, then for each record: its hash and one sorted set per index entry
-- ARGV: a nonce, then for each record: expected version ('0': must not exist), body ('' deletes), event ('' for none), member,
--       number n of index entries, then n scores ('' removes the member)
-- Returns 1, or 0 when somebody else was faster with any of them.
-- The last nonces stay with the first record: a client that lost the answer asks again and learns that it had won, even
-- after a few others have written.
local nonces = redis.call('HGET', KEYS[2], 'nonces') or ''
if string.find(nonces, ARGV[1], 1, true) then return 1 end
local k, a = 2, 2
while k <= #KEYS do
  if (redis.call('HGET', KEYS[k], 'version') or '0') ~= ARGV[a] then return 0 end
  local n = tonumber(ARGV[a + 4])
  k, a = k + 1 + n, a + 5 + n
end
k, a = 2, 2
while k <= #KEYS do
  local body, event, member, n = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], tonumber(ARGV[a + 4])
  if body == '' then
    redis.call('DEL', KEYS[k])
  else
    redis.call('HSET', KEYS[k], 'version', ARGV[a] + 1, 'body', body)
  end
  for i = 1, n do
    local score = ARGV[a + 4 + i]
    if score == '' then redis.call('ZREM', KEYS[k + i], member) else redis.call('ZADD', KEYS[k + i], score, member) end
  end
  if event ~= '' then redis.call('XADD', KEYS[1], '*', 'event', event) end
  k, a = k + 1 + n, a + 5 + n
end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[2], 'nonces', string.sub(ARGV[1] .. ' ' .. nonces, 1, 68)) end  -- four of them
return 1
