-- The short way, for a crowd whose requests are all the purchase of one unit and nothing else: the first so many succeed
-- and the others are sold out.

if refusal or not raw then
  return settle(refusal or {sequence, NOT_FOUND})
end

if plain and (due == 0 or due > now_s) and limit == 0 and not items then
  read_clock()
  redis.call('LLEN', KEYS[2]) -- is it a list?
  local granted = math.min(stock, count)
  local users, users_json = cjson.decode(ARGV[6]), ARGV[6]
  if granted < count then
    for i = count, granted + 1, -1 do
      users[i] = nil
    end
    users_json = cjson.encode(users)
  end
  local counters, changes = {}, {}
  if not begun then
    counters, changes[1] = begin()
  end
  if not (may('XADD', KEYS[5], '1-0', 'at', '') and may('HSET', KEYS[3], session, '')
      and may('HSET', KEYS[4], 'sold', '') and may('DECRBY', KEYS[1], '1') and may('LPUSH', KEYS[2], '')) then
    return redis.error_reply(MAY_NOT)
  end
  local refused = append(begun and version + 1 or 1, changes, '[' .. stock .. ',' .. users_json .. ']')
  if refused then
    return refused
  end
  local reply = remember({sequence, DECIDED, stock, granted, version, now_ms, epoch})
  counters[#counters + 1] = 'version'
  counters[#counters + 1] = version + granted
  counters[#counters + 1] = 'sold'
  counters[#counters + 1] = sold + granted
  redis.call('HSET', KEYS[4], unpack(counters))
  redis.call('DECRBY', KEYS[1], granted)
  call_many(users, 'LPUSH', KEYS[2])
  if not begun then
    redis.pcall('SADD', KEYS[12], product)
  end
  if granted < ASK_FROM or anyone_listens() then
    for i = 1, granted do
      publish('sold', users[i], stock - i, 1, version + i)
    end
    if granted == stock then
      publish_sold_out()
    end
  end
  return reply
end
