-- Opens a sale: sets its stock and terms, and clears what an earlier sale of the same id left. The sessions stay: a
-- batch that is still on its way from before must find them. The versions go on, so that no version is told twice.
--
-- KEYS  as in frame.lua, and 14 products_moved
-- ARGV  1 product id   2 stock in units   3 force: '1' also when there are buyers or holds
--       4 epoch, 8 hex digits   5 limit   6 opens at   7 closes at   8 hold time   9 hold time with all extensions
--       10 numbered: '1' when each unit is an item of its own   11 discard: '1' also what is not in the database yet
-- Returns {buyers, holds, changes} that stand in the way (nothing was changed; changes as in unmoved.lua), or {0, 0, 0}
-- when the sale is open.

if ARGV[3] ~= '1' then
  local buyers, holds = redis.call('LLEN', KEYS[2]), redis.call('ZCARD', KEYS[7])
  if buyers + holds > 0 then
    return {buyers, holds, 0}
  end
end
local behind = ARGV[11] ~= '1' and unmoved() or 0
if behind ~= 0 then
  return {0, 0, behind}
end
local version = redis.pcall('HGET', KEYS[4], 'version')
version = type(version) == 'string' and #version < 15 and string.match(version, '^%d+$') or '0'
local before = version
version = string.format('%.0f', version + 1)
local time = redis.call('TIME')
local stock = ARGV[2]

redis.call('SET', KEYS[1], stock) -- first: Redis refuses it when it is out of memory
redis.call('DEL', KEYS[2], unpack(KEYS, 4, 11))
-- first what every batch reads: a small hash is searched from its beginning
redis.call('HSET', KEYS[4], 'epoch', ARGV[4], 'version', version, 'sold', '0', 'held', '0', 'due', '0', 'state', 'open',
  'limit', ARGV[5], 'opens_at', ARGV[6], 'closes_at', ARGV[7], 'initial', stock, 'restocked', '0', 'hold_s', ARGV[8],
  'hold_total_s', ARGV[9], 'moved', before)
if ARGV[10] == '1' then
  redis.call('HSET', KEYS[4], 'items', stock, 'cursor', '1')
end
redis.call('XADD', KEYS[5], version .. '-0', 'at', string.format('%d%03d', time[1], math.floor(time[2] / 1000)),
  'epoch', ARGV[4], 'terms', string.format(
    '{"limit":%s,"opens_at":%s,"closes_at":%s,"hold_s":%s,"hold_total_s":%s,"numbered":%s}',
    ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10] == '1' and 'true' or 'false'),
  'changes', '[["opened",' .. stock .. ',"",' .. stock .. ']]')
redis.call('SADD', KEYS[12], ARGV[1])
redis.call('ZREM', KEYS[13], ARGV[1])
redis.pcall('PERSIST', KEYS[3]) -- those of a product that did not exist were to expire
redis.pcall('PUBLISH', 'flashsale_events', '{"event":"opened","product_id":' .. cjson.encode(ARGV[1])
  .. ',"remaining":' .. stock .. ',"timestamp":' .. time[1] .. ',"quantity":' .. stock .. ',"version":' .. version
  .. '}')
return {0, 0, 0}
