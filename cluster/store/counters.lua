-- counters: add to counters in some hashes, once per batch.
-- KEYS: the writer's last batch, then the hashes
-- ARGV: the batch's number, seconds to remember it, then for each hash: when it expires (Unix seconds), number n of
--       counters, then n pairs of field and increment
-- Returns 1, or 0 when the batch was added before: a writer that lost the answer asks again.
if redis.call('GET', KEYS[1]) == ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
local a = 3
for k = 2, #KEYS do
  local n = tonumber(ARGV[a + 1])
  for i = 0, n - 1 do redis.call('HINCRBY', KEYS[k], ARGV[a + 2 + 2 * i], ARGV[a + 3 + 2 * i]) end
  redis.call('EXPIREAT', KEYS[k], ARGV[a])
  a = a + 2 + 2 * n
end
return 1
