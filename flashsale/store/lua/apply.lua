-- The writes of the rules: everything that changed, with as few calls as possible.

if defect then
  return defective(defect)
end

local hold_values, deadline_values, ended, given_up = {}, {}, {}, {}
for token in pairs(holds_touched) do
  local hold = holds[token]
  if hold then
    hold_values[#hold_values + 1], hold_values[#hold_values + 2] = token, cmsgpack.pack(hold)
    deadline_values[#deadline_values + 1], deadline_values[#deadline_values + 2] = hold[7], token
    due = due == 0 and hold[7] or math.min(due, hold[7])
  else
    ended[#ended + 1] = token
    if holds_touched[token] ~= PASSED then
      given_up[#given_up + 1] = token
    end
  end
end

-- When the next hold may be due has changed: that alone is no change of the sale, and may fail.
local function write_due()
  if due == due_before then
    return
  elseif due == 0 then
    redis.pcall('ZREM', KEYS[14], product)
  else
    redis.pcall('ZADD', KEYS[14], due, product)
  end
  redis.pcall('HSET', KEYS[4], 'due', due)
end

if #changes == 0 then
  write_due()
  if passed > 0 then
    redis.pcall('ZREMRANGEBYRANK', KEYS[8], 0, passed - 1) -- deadlines of nothing
  end
  reply[4] = epoch or ''
  return settle(reply)
end

-- Is each key of the type that is to be written, and may this user do it?
local function check()
  redis.call('LLEN', KEYS[2])
  if #hold_values + #ended > 0 then
    redis.call('HLEN', KEYS[7])
    redis.call('ZCARD', KEYS[8])
  end
  if #kept_values > 0 then
    redis.call('HLEN', KEYS[10])
  end
  if limit > 0 then
    redis.call('HLEN', KEYS[6])
  end
  if #refund_values > 0 then
    redis.call('HLEN', KEYS[12])
  end
  if next(taken_touched) then
    redis.call('STRLEN', KEYS[9])
  end
  return may('XADD', KEYS[5], '1-0', 'at', '') and may('HSET', KEYS[3], session, '') and may('HDEL', KEYS[7], '')
    and may('SET', KEYS[1], '1') and may('LPUSH', KEYS[2], '') and may('LREM', KEYS[2], '1', '')
    and may('ZADD', KEYS[8], '1', '') and may('ZREM', KEYS[8], '') and may('ZREMRANGEBYRANK', KEYS[8], '0', '0')
    and may('BITFIELD', KEYS[9], 'SET', 'u1', '0', '1') and may('RENAME', KEYS[10], KEYS[11]) and may('EXPIREAT', KEYS[10], '1')
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
  redis.call('ZREMRANGEBYRANK', KEYS[8], 0, passed - 1) -- before any other change of the ranks
end
call_many(hold_values, 'HSET', KEYS[7])
call_many(deadline_values, 'ZADD', KEYS[8])
call_many(ended, 'HDEL', KEYS[7])
call_many(given_up, 'ZREM', KEYS[8])

local bits = {}
for item in pairs(taken_touched) do
  local n = #bits
  bits[n + 1], bits[n + 2], bits[n + 3], bits[n + 4] = 'SET', 'u1', item - 1, taken[item] and 1 or 0
end
call_many(bits, 'BITFIELD', KEYS[9])

if #kept_values > 0 then
  local is_new = now_s >= since + REQUESTS_KEPT_S -- a generation; the one before the last has expired by now
  if is_new then
    if redis.call('EXISTS', KEYS[10]) == 1 then
      redis.call('RENAME', KEYS[10], KEYS[11])
    end
    since_before, since = since, now_s
    for _, value in ipairs({'since', now_s, 'since_before', since_before}) do
      counters[#counters + 1] = value
    end
  end
  call_many(kept_values, 'HSET', KEYS[10])
  if is_new then
    redis.call('EXPIREAT', KEYS[10], since + 2 * REQUESTS_KEPT_S)
  end
end

call_many(refund_values, 'HSET', KEYS[12])

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
  redis.pcall('SADD', KEYS[13], product)
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
