-- Decides one batch of single-unit purchases of one product: the group commit's one round trip.
--
-- KEYS  1 stock (integer)   2 buyers (list)   3 sessions (hash)
-- ARGV  1 session           who sends: one server worker
--       2 sequence          of the batch within its session; the same when it is sent again
--       3 fenced            '1': remember the sequence even when nothing changes
--       4 count             purchases wanted
--       5 users             msgpack array of `count` user ids, in order of arrival
--       6 product id        for the events
-- Returns {sequence, code, stock, granted, sold}: stock and sold as they were before this batch; the first `granted`
-- purchases succeed, the rest are sold out.
-- Codes: 0 decided, now or when it was sent before; 1 no such product; 2 overtaken by a later batch of its session;
-- 3 stock is not a number this engine can count in.
--
-- A script that fails half-way is not rolled back, so everything is read and checked before the first write: types,
-- numbers, permissions. The first write is one that Redis refuses when it is out of memory or may not write.

local DECIDED, NOT_FOUND, OVERTAKEN, DEFECTIVE = 0, 1, 2, 3
local STOCK_MAX = 9007199254740991 -- 2^53-1: Lua numbers are doubles
local SESSIONS_KEPT = 64
local SESSION_AGE_MAX_S = 86400
local CHANNEL = 'flashsale_events'
local ASK_FROM = 8 -- sales in a batch: for fewer, publishing costs no more than asking who listens
local CHUNK = 1000 -- unpack() puts its values on the C stack, which takes 8,000

local session, sequence, fenced = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local count = tonumber(ARGV[4])

local raw = redis.call('GET', KEYS[1])
local sold = redis.call('LLEN', KEYS[2])
local record = redis.call('HGET', KEYS[3], session)

if record then
  local last, stock_then, granted_then, sold_then, found = string.match(record, '^(%d+) (%d+) (%d+) (%d+) (%d)')
  last = tonumber(last)
  if sequence == last then
    return {sequence, tonumber(found), tonumber(stock_then), tonumber(granted_then), tonumber(sold_then)}
  elseif sequence < last then
    return {sequence, OVERTAKEN, 0, 0, 0}
  end
end

-- Whether a message would reach anyone: a subscriber here, or a replica, which passes it on. Writing and publishing the
-- events is five sixths of the cost of a sale (2.0 of 2.4 us); when nobody listens, it is for nothing. In doubt, yes.
local function anyone_listens()
  local subscribers = redis.pcall('PUBSUB', 'NUMSUB', CHANNEL)
  local patterns = redis.pcall('PUBSUB', 'NUMPAT')
  local replication = redis.pcall('INFO', 'replication')
  return subscribers[2] ~= 0 or patterns ~= 0 or type(replication) ~= 'string'
    or not string.find(replication, 'connected_slaves:0', 1, true)
end

-- Remembers this batch's outcome; forgets sessions that have been silent for a day once there are many.
local function remember(now_s, stock, granted, code)
  local added = redis.call('HSET', KEYS[3], session,
    string.format('%.0f %.0f %.0f %.0f %d %s', sequence, stock, granted, sold, code, now_s))
  local kept = added == 1 and redis.pcall('HLEN', KEYS[3]) -- pcall here and below: housekeeping must not fail a sale
  if type(kept) == 'number' and kept > SESSIONS_KEPT then
    local all = redis.pcall('HGETALL', KEYS[3])
    for i = 1, #all, 2 do
      local written_s = tonumber(string.match(all[i + 1], '(%d+)$') or now_s)
      if tonumber(now_s) - written_s > SESSION_AGE_MAX_S then
        redis.pcall('HDEL', KEYS[3], all[i])
      end
    end
  end
end

-- Whether this user may make the writes of a sale (Redis 7 and newer can tell).
local function may_write()
  local may = redis.acl_check_cmd
  return not may
    or (may('HSET', KEYS[3], session, '') and may('DECRBY', KEYS[1], '1') and may('LPUSH', KEYS[2], ''))
end

local stock, code, granted = 0, NOT_FOUND, 0
if raw then
  stock, code = tonumber(raw), DECIDED
  if not (raw == '0' or string.match(raw, '^-?[1-9]%d*$')) or stock > STOCK_MAX then
    return {sequence, DEFECTIVE, 0, 0, 0}
  end
  stock = math.max(stock, 0)
  granted = math.min(stock, count)
end

if granted > 0 or fenced then
  local now_s = redis.call('TIME')[1]
  if not may_write() then
    return redis.error_reply('NOPERM this user may not write the keys of a sale')
  end
  remember(now_s, stock, granted, code) -- first, so that whatever fails after it is not done twice
  if not raw then
    redis.pcall('EXPIRE', KEYS[3], SESSION_AGE_MAX_S) -- nobody will reset a product that does not exist
  end
  if granted > 0 then
    local users = cmsgpack.unpack(ARGV[5])
    redis.call('DECRBY', KEYS[1], string.format('%.0f', granted))
    for first = 1, granted, CHUNK do
      redis.call('LPUSH', KEYS[2], unpack(users, first, math.min(first + CHUNK - 1, granted)))
    end
    if granted < ASK_FROM or anyone_listens() then
      local product = cjson.encode(ARGV[6])
      local tail = ',"timestamp":' .. now_s .. '}'
      local sale = '{"event":"purchase","product_id":' .. string.gsub(product, '%%', '%%%%')
        .. ',"buyer":%s,"remaining":%.0f' .. tail
      for i = 1, granted do -- pcall: a user who may not publish still sells
        redis.pcall('PUBLISH', CHANNEL, string.format(sale, cjson.encode(users[i]), stock - i))
      end
      if granted == stock then
        redis.pcall('PUBLISH', CHANNEL, '{"event":"sold_out","product_id":' .. product .. tail)
      end
    end
  end
end
return {sequence, code, stock, granted, sold}
