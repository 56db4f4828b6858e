-- The writes of the rules: everything that changed, with as few calls as possible.

if defect then
  return defective(defect)
end

local deadline_values, given_up = {}, {}
for token, how in pairs(deadlines_touched) do
  local at = deadlines[token]
  if at then
    deadline_values[#deadline_values + 1], deadline_values[#deadline_values + 2] = at, token
    due = due == 0 and at or math.min(due, at)
  elseif how ~= PASSED then
    given_up[#given_up + 1] = token
  end
end

-- When the next hold may be due has changed: that alone is no change of the sale, and may fail.
local function write_due()
  if due == due_before then
    return
  elseif due == 0 then
    redis.pcall('ZREM', KEYS[13], product)
  else
    redis.pcall('ZADD', KEYS[13], due, product)
  end
  redis.pcall('HSET', KEYS[4], 'due', due)
end

if #changes == 0 then
  write_due()
  if passed > 0 then
    redis.pcall('ZREMRANGEBYRANK', KEYS[7], 0, passed - 1) -- deadlines of nothing
  end
  reply[4] = epoch or ''
  return settle(reply)
end

-- Is each key of the type that is to be written, and may this user do it?
local function check()
  redis.call('LLEN', KEYS[2])
  if next(deadlines_touched) then
    redis.call('ZCARD', KEYS[7])
  end
  if #kept_values > 0 then
    redis.call('HLEN', KEYS[9])
  end
  if limit > 0 then
    redis.call('HLEN', KEYS[6])
  end
  if #refund_values > 0 then
    redis.call('HLEN', KEYS[11])
  end
  if next(taken_touched) then
    redis.call('STRLEN', KEYS[8])
  end
  return may('XADD', KEYS[5], '1-0', 'at', '') and may('HSET', KEYS[3], session, '') and may('HDEL', KEYS[6], '')
    and may('SET', KEYS[1], '1') and may('LPUSH', KEYS[2], '') and may('LREM', KEYS[2], '1', '')
    and may('ZADD', KEYS[7], '1', '') and may('ZREM', KEYS[7], '') and may('ZREMRANGEBYRANK', KEYS[7], '0', '0')
    and may('BITFIELD', KEYS[8], 'SET', 'u1', '0', '1') and may('RENAME', KEYS[9], KEYS[10])
end
if not check() then
  return redis.error_reply(MAY_NOT)
end

local counters = {}
if not begun then
  local opened
  counters, opened = begin()
  table.insert(changes, 1, opened)
end
reply[4] = epoch
local refused = append(version - #changes + 1, changes)
if refused then
  return refused
end
remember(reply)

if stock ~= stock_before then
  redis.call('SET', KEYS[1], stock)
end

local pushed = {}
for i = 1, #buyers do
  if type(buyers[i]) == 'string' then
    pushed[#pushed + 1] = buyers[i]
  else
    call_many(pushed, 'LPUSH', KEYS[2])
    pushed = {}
    redis.call('LREM', KEYS[2], 1, buyers[i][1])
  end
end
call_many(pushed, 'LPUSH', KEYS[2])

local counted, gone = {}, {}
for user in pairs(users_touched) do
  if users[user] > 0 then
    counted[#counted + 1], counted[#counted + 2] = user, users[user]
  else
    gone[#gone + 1] = user
  end
end
call_many(counted, 'HSET', KEYS[6])
call_many(gone, 'HDEL', KEYS[6])

if passed > 0 then
  redis.call('ZREMRANGEBYRANK', KEYS[7], 0, passed - 1) -- before any other change of the ranks
end
call_many(deadline_values, 'ZADD', KEYS[7])
call_many(given_up, 'ZREM', KEYS[7])

local bits = {}
for item in pairs(taken_touched) do
  local n = #bits
  bits[n + 1], bits[n + 2], bits[n + 3], bits[n + 4] = 'SET', 'u1', item - 1, taken[item] and 1 or 0
end
call_many(bits, 'BITFIELD', KEYS[8])

if #kept_values > 0 then
  -- for a day at least after a hold's end, and not as long as one waits for its end that should have come long ago
  if now_s >= since + REQUESTS_KEPT_S + math.max(hold_s, hold_total_s) and not more_due then
    if since > 0 then
      redis.call('RENAME', KEYS[9], KEYS[10])
    end
    for _, value in ipairs({'since', now_s, 'since_before', since}) do
      counters[#counters + 1] = value
    end
  end
  call_many(kept_values, 'HSET', KEYS[9])
end

if #refund_values > 0 then
  call_many(refund_values, 'HSET', KEYS[11])
  counters[#counters + 1], counters[#counters + 2] = 'refunded', refunded
end

for _, value in ipairs({'version', version, 'sold', sold, 'held', held}) do
  counters[#counters + 1] = value
end
if switched then
  counters[#counters + 1], counters[#counters + 2] = 'state', state
end
if stock_restocked then
  counters[#counters + 1], counters[#counters + 2] = 'restocked', restocked
end
if items then
  for _, value in ipairs({'items', items, 'cursor', cursor}) do
    counters[#counters + 1] = value
  end
end
redis.call('HSET', KEYS[4], unpack(counters))
write_due()
if not begun then
  redis.pcall('SADD', KEYS[12], product)
end

if #changes < ASK_FROM or anyone_listens() then
  local first_version = version - #changes
  for i = begun and 1 or 2, #changes do -- a sale whose stock was set by hand was open before its ledger began
    local kind, remaining, user, quantity = unpack(cjson.decode(changes[i]))
    publish(kind, user, remaining, quantity, first_version + i)
  end
  if went_out then
    publish_sold_out()
  end
end
return reply
