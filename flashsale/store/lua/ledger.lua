-- Writing: the ledger and the session's record first, then what else a batch changes, then the events.

local MAY_NOT = 'NOPERM this user may not write the keys of a sale'

-- Whether this user may make these writes (Redis 7 and newer can tell).
local function may(...)
  return not redis.acl_check_cmd or redis.acl_check_cmd(...)
end

-- Calls a command with many arguments, in parts that unpack() can take; `first` go in front of each part. The number of
-- arguments that belong together divides CHUNK.
local function call_many(values, ...)
  local first = {...}
  local size = #first
  for from = 1, #values, CHUNK do
    local part = {unpack(first)}
    for i = from, math.min(from + CHUNK - 1, #values) do
      part[size + i - from + 1] = values[i]
    end
    redis.call(unpack(part))
  end
end

-- Appends the changes of a batch to the ledger, as one message of the stream, whose id is the version of the first. It says
-- of which sale they are, for whoever reads it when the product may have been opened anew.
-- `changes` is a list of the JSON of each, `sales` the JSON of a run of sales of one unit after them, or nil.
-- Returns what to answer if Redis refuses, or too much waits for the database: then nothing was written.
local function append(first_version, changes, sales)
  if backlog_max > 0 and first_version - 1 - (tonumber(redis.call('HGET', KEYS[4], 'moved') or 0) or 0) >= backlog_max
      and redis.call('EXISTS', ARGV[9]) == 1 then
    return defective('the database is too many changes behind')
  end
  local message = {'XADD', KEYS[5], first_version .. '-0', 'at', now_ms, 'epoch', epoch}
  if #changes > 0 then
    message[8], message[9] = 'changes', '[' .. table.concat(changes, ',') .. ']'
  end
  if sales then
    message[#message + 1] = 'sales'
    message[#message + 1] = sales
  end
  local added = redis.pcall(unpack(message))
  if type(added) ~= 'table' or not added.err then
    return nil
  end
  -- the stream is ahead: somebody else has written there, or the counters were set back
  return string.find(added.err, 'ID specified', 1, true) and defective('its ledger does not take the next version') or added
end

-- Remembers this batch's reply; forgets sessions that have been silent for a day once there are many.
local function remember(reply)
  local added = redis.call('HSET', KEYS[3], session, sequence .. ' ' .. now_s,
    session .. ':reply', cmsgpack.pack(reply))
  local kept = added > 0 and redis.pcall('HLEN', KEYS[3]) -- pcall here and below: housekeeping must not fail a sale
  if type(kept) == 'number' and kept > 2 * SESSIONS_KEPT then
    local all = redis.pcall('HGETALL', KEYS[3])
    for i = 1, #all, 2 do
      local written_s = string.match(all[i + 1], '^%d+ (%d+)$')
      if written_s and now_s - tonumber(written_s) > SESSION_AGE_MAX_S then
        redis.pcall('HDEL', KEYS[3], all[i], all[i] .. ':reply')
      end
    end
  end
  return reply
end

-- Whether a message would reach anyone: a subscriber here, or a replica, which passes it on. Writing and publishing the
-- events is most of the cost of a sale; when nobody listens, it is for nothing. In doubt, yes.
local function anyone_listens()
  local subscribers = redis.pcall('PUBSUB', 'NUMSUB', CHANNEL)
  local patterns = redis.pcall('PUBSUB', 'NUMPAT')
  local replication = redis.pcall('INFO', 'replication')
  return subscribers[2] ~= 0 or patterns ~= 0 or type(replication) ~= 'string'
    or not string.find(replication, 'connected_slaves:0', 1, true)
end

local EVENTS = {sold = 'purchase', confirmed = 'purchase'} -- the first seed's name for both

-- Publishes a change; pcall: a user who may not publish still sells.
local function publish(kind, user, remaining, quantity, at_version)
  redis.pcall('PUBLISH', CHANNEL, '{"event":"' .. (EVENTS[kind] or kind) .. '","product_id":' .. cjson.encode(product)
    .. (user ~= '' and ',"buyer":' .. cjson.encode(user) or '') .. ',"remaining":' .. remaining
    .. ',"timestamp":' .. now_s .. ',"quantity":' .. quantity .. ',"version":' .. at_version .. '}')
end

local function publish_sold_out()
  redis.pcall('PUBLISH', CHANNEL, '{"event":"sold_out","product_id":' .. cjson.encode(product)
    .. ',"timestamp":' .. now_s .. '}')
end

-- The name, among the generations of a product, of a sale whose stock was set by hand.
local function new_epoch()
  return string.sub(redis.sha1hex(session .. product .. now_ms), 1, 8)
end

-- What such a sale begins with: its counters, and the first change of its ledger.
local function begin()
  epoch = new_epoch()
  return {'epoch', epoch, 'initial', (stock_before + sold_before)},
    string.format('["opened",%d,"",%d,0,"",%d]', stock_before, stock_before + sold_before, sold_before)
end

-- Ends a batch that changes nothing.
local function settle(reply)
  if fenced then
    read_clock()
    if not may('HSET', KEYS[3], session, '') then
      return redis.error_reply(MAY_NOT)
    end
    remember(reply)
    if not raw then
      redis.pcall('EXPIRE', KEYS[3], SESSION_AGE_MAX_S) -- nobody will reset a product that does not exist
    end
  end
  return reply
end
