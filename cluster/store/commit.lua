-- commit: write one record, its indexes and its event, or nothing.
-- KEYS: record, event stream, then one sorted set per index entry
-- ARGV: expected version ('0': must not exist), body ('' deletes), event ('' for none), member,
--       then one score per index entry ('' removes the member)
-- Returns the new version, or 0 when somebody else was faster.
local version = redis.call('HGET', KEYS[1], 'version') or '0'
if version ~= ARGV[1] then return 0 end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('HSET', KEYS[1], 'version', version + 1, 'body', ARGV[2])
end
for i = 3, #KEYS do
  local score = ARGV[i + 2]
  if score == '' then redis.call('ZREM', KEYS[i], ARGV[4]) else redis.call('ZADD', KEYS[i], score, ARGV[4]) end
end
if ARGV[3] ~= '' then redis.call('XADD', KEYS[2], '*', 'event', ARGV[3]) end
return version + 1
