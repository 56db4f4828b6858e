-- Opens a sale: sets its stock and terms, and clears what an earlier sale of the same id left. The sessions stay: a
-- batch that is still on its way from before must find them. The versions go on, so that no version is told twice.
--
-- KEYS  as in frame.lua
-- terms: limit, opens_at, closes_at, hold_s, hold_total_s; numbered, when each unit is an item of its own
local function open_sale(product, stock, epoch, terms)
  local version = redis.pcall('HGET', KEYS[4], 'version')
  version = type(version) == 'string' and #version < 15 and string.match(version, '^%d+$') or '0'
  local before = version
  version = string.format('%.0f', version + 1)
  local time = redis.call('TIME')

  redis.call('SET', KEYS[1], stock) -- first: Redis refuses it when it is out of memory
  redis.call('DEL', KEYS[2], unpack(KEYS, 4, 11))
  -- first what every batch reads: a small hash is searched from its beginning
  redis.call('HSET', KEYS[4], 'epoch', epoch, 'version', version, 'sold', '0', 'held', '0', 'due', '0', 'state', 'open',
    'limit', terms.limit, 'opens_at', terms.opens_at, 'closes_at', terms.closes_at, 'initial', stock, 'restocked', '0',
    'hold_s', terms.hold_s, 'hold_total_s', terms.hold_total_s, 'moved', before)
  if terms.numbered then
    redis.call('HSET', KEYS[4], 'items', stock, 'cursor', '1')
  end
  redis.call('XADD', KEYS[5], version .. '-0', 'at', string.format('%d%03d', time[1], math.floor(time[2] / 1000)),
    'epoch', epoch, 'terms', string.format(
      '{"limit":%s,"opens_at":%s,"closes_at":%s,"hold_s":%s,"hold_total_s":%s,"numbered":%s}',
      terms.limit, terms.opens_at, terms.closes_at, terms.hold_s, terms.hold_total_s, terms.numbered and 'true' or 'false'),
    'changes', '[["opened",' .. stock .. ',"",' .. stock .. ']]')
  redis.call('SADD', KEYS[12], product)
  redis.call('ZREM', KEYS[13], product)
  redis.pcall('PERSIST', KEYS[3]) -- those of a product that did not exist were to expire
  redis.pcall('PUBLISH', 'flashsale_events', '{"event":"opened","product_id":' .. cjson.encode(product)
    .. ',"remaining":' .. stock .. ',"timestamp":' .. time[1] .. ',"quantity":' .. stock .. ',"version":' .. version
    .. '}')
end
