-- intersect: a page of the members that stand in some set of every group, highest score first. A member has one score.
-- KEYS: two scratch keys, then the sets, group after group
-- ARGV: lowest score, highest score, offset, limit, then how many sets each group has
-- Returns how many such members there are between the scores, then those of the page.
local found, k = nil, 3
for g = 5, #ARGV do
  local n = tonumber(ARGV[g])
  local group = KEYS[k]
  if n > 1 then
    group = KEYS[2]
    local union = {'ZUNIONSTORE', group, n}
    for i = k, k + n - 1 do union[#union + 1] = KEYS[i] end
    union[#union + 1], union[#union + 2] = 'AGGREGATE', 'MAX'
    redis.call(unpack(union))
  end
  if found then
    redis.call('ZINTERSTORE', KEYS[1], 2, found, group, 'AGGREGATE', 'MAX')
    found = KEYS[1]
  elseif n > 1 then
    redis.call('ZUNIONSTORE', KEYS[1], 1, group)
    found = KEYS[1]
  else
    found = group
  end
  k = k + n
end
local page = redis.call('ZREVRANGEBYSCORE', found, ARGV[2], ARGV[1], 'LIMIT', ARGV[3], ARGV[4])
table.insert(page, 1, redis.call('ZCOUNT', found, ARGV[1], ARGV[2]))
redis.call('DEL', KEYS[1], KEYS[2])
return page
