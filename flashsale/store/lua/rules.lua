-- The rules, request by request: what engine.py says, on values in memory. Reads are made for the whole batch where that
-- is possible; writes are gathered and made at the end.

local PURCHASE, RESERVE, CONFIRM, CANCEL, EXTEND, STATUS, SWEEP, RESTOCK, REFUND, PAUSE, RESUME, CLOSE =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
-- What a row of the reply begins with (store/encoding.py).
local DUPLICATE, SUCCESS, HELD, CANCELLED, EXPIRED, SOLD_OUT, LIMIT_EXCEEDED, NOT_OPEN, CLOSED, PAUSED, ITEM_TAKEN,
  MISMATCH, OK, CHANGED, SWEPT, FAILED = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
-- What FAILED says.
local HOLD_NOT_FOUND, ITEM_NOT_FOUND, ORDER_NOT_FOUND, ALREADY_CONFIRMED, ONE_ITEM_AT_A_TIME, SALE_IS_CLOSED,
  STOCK_TOO_LARGE = 1, 2, 3, 4, 5, 6, 7

read_clock()

local requests
if plain then
  requests = cjson.decode(ARGV[6])
  for i = 1, count do
    requests[i] = {PURCHASE, requests[i], 1, '', 0, cjson.encode(requests[i]) .. ',1'}
  end
else
  requests = cmsgpack.unpack(ARGV[7])
end

local terms = redis.call('HMGET', KEYS[4], 'hold_s', 'hold_total_s', 'cursor', 'restocked', 'since', 'since_before')
local hold_s, hold_total_s = tonumber(terms[1] or HOLD_S), tonumber(terms[2] or HOLD_TOTAL_S)
local cursor, restocked = tonumber(terms[3] or 1), tonumber(terms[4] or 0) -- cursor: no item below it is free
local since, since_before = tonumber(terms[5] or 0), tonumber(terms[6] or 0)
if not (hold_s and hold_total_s and cursor and restocked and since and since_before) then
  return defective('its counters are not what was written')
end

-- A key that is gone is not an empty one: who has bought, what is taken and what is held would be forgotten.
local expected = {}
if held > 0 then
  expected = {KEYS[7], KEYS[8]}
end
if limit > 0 and sold + held > 0 then
  expected[#expected + 1] = KEYS[6]
end
if items and sold + held > 0 then
  expected[#expected + 1] = KEYS[9]
end
if #expected > 0 and redis.call('EXISTS', unpack(expected)) < #expected then
  return defective('one of its keys is gone')
end

-- What is known of the keys: read once, changed here, written at the end.

local users, users_touched = {}, {} -- user -> units bought and held
local from_s = math.ceil(now_ms / 1000) -- holds count whole seconds, and from the next one: never less than was asked for
local holds, holds_touched = {}, {} -- token -> {user, quantity, item, request id, version, created at, expires at}
local kept, kept_values = {}, {} -- 'r' + request id or 'h' + token -> row, then what was asked for
local taken, taken_touched = {}, {} -- item -> whether it is sold or held
local refunds, refund_values = {}, {} -- version of an order -> that of its refund
local buyers = {} -- user ids to push; {user} for one to take off
local changes = {} -- of the ledger, as JSON: [kind, stock, user, quantity, item, request id, ref, expires at]
local went_out = false -- the last unit
local switched, stock_restocked, defect = false, false, nil

local function load(key, names, into, convert)
  local missing = {}
  for i = 1, #names do
    if into[names[i]] == nil then
      missing[#missing + 1] = names[i]
    end
  end
  for from = 1, #missing, CHUNK do
    local found = redis.call('HMGET', key, unpack(missing, from, math.min(from + CHUNK - 1, #missing)))
    for i = 1, #found do
      into[missing[from + i - 1]] = convert(found[i])
    end
  end
end

local function itself(value)
  return value
end

local function change(kind, user, quantity, item, request_id, ref, expires_at)
  version = version + 1
  -- string.format costs a third of cjson.encode, which the kinds and numbers do not need
  if request_id == '' and ref == 0 and item == 0 and expires_at == 0 then
    changes[#changes + 1] = string.format('["%s",%d,%s,%d]', kind, stock, cjson.encode(user), quantity)
  else
    changes[#changes + 1] = string.format('["%s",%d,%s,%d,%d,%s,%d,%d]', kind, stock, cjson.encode(user), quantity,
      item, cjson.encode(request_id), ref, expires_at)
  end
end

-- Rows of the reply: msgpack arrays

local function row(...)
  return cmsgpack.pack({...})
end

local bare_rows = {}

-- A row that says nothing but what it is.
local function bare(kind)
  if not bare_rows[kind] then
    bare_rows[kind] = row(kind)
  end
  return bare_rows[kind]
end

local function kind_of(packed)
  return string.byte(packed, 2) -- behind the array's header
end

-- The row of an answer that was given before.
local function again(packed)
  return kind_of(packed) == EXPIRED and packed or '\146\000' .. packed -- an array of DUPLICATE and the row
end

-- What is kept, for a day at least, of answers and of ended holds.

local function keep(key, record)
  kept[key] = record
  kept_values[#kept_values + 1], kept_values[#kept_values + 2] = key, record
end

local function load_kept(names)
  if now_s < since + 2 * REQUESTS_KEPT_S then
    load(KEYS[10], names, kept, itself)
  end
  if now_s < since_before + 2 * REQUESTS_KEPT_S then
    for i = 1, #names do
      kept[names[i]] = kept[names[i]] or nil
    end
    load(KEYS[11], names, kept, itself)
  end
end

-- The row and what was asked for that are kept under a key; nil when there are none.
local function find_kept(key)
  if kept[key] == nil then
    load_kept({key})
  end
  local record = kept[key]
  if record then
    local first = string.byte(record) or 0
    if first < 144 or first > 159 then -- a small msgpack array
      error('its records are not what was written', 0)
    end
    local offset = cmsgpack.unpack_one(record)
    return string.sub(record, 1, offset), string.sub(record, offset + 1)
  end
end

-- Users, while there is a limit

local function as_units(value)
  return tonumber(value or 0)
end

local function units_of(user)
  if users[user] == nil then
    users[user] = as_units(redis.call('HGET', KEYS[6], user))
  end
  return users[user]
end

local function count_units(user, units)
  if limit > 0 then
    users[user] = units_of(user) + units
    users_touched[user] = true
  end
end

-- Items: a bit each, set when it is sold or held

local chunks = {} -- 128 bytes of the bitmap each
local loosened = {} -- chunks of which this batch has freed an item: in the bitmap they may still be full

local function is_taken(item)
  if taken[item] == nil then
    local bit_index = item - 1
    local number = math.floor(bit_index / 1024)
    if not chunks[number] then
      chunks[number] = redis.call('GETRANGE', KEYS[9], number * 128, number * 128 + 127)
    end
    local byte = string.byte(chunks[number], math.floor(bit_index % 1024 / 8) + 1) or 0
    return bit.band(byte, bit.rshift(128, bit_index % 8)) ~= 0
  end
  return taken[item]
end

local function set_taken(item, value)
  if item > 0 then
    taken[item], taken_touched[item] = value, true
    if not value then
      loosened[math.floor((item - 1) / 1024)] = true
      cursor = math.min(cursor, item)
    end
  end
end

-- The lowest free item; nil when there is none, which the stock does not allow.
local function free_item()
  while cursor <= items do
    if not is_taken(cursor) then
      return cursor
    end
    cursor = cursor + 1
    if cursor % 1024 == 1 then -- this chunk is full: let Redis find the next that is not
      local free = redis.call('BITPOS', KEYS[9], 0, (cursor - 1) / 8) -- -1 behind the end of the bitmap
      local next_free = math.max(cursor, free - free % 8 + 1)
      for number in pairs(loosened) do
        if number * 1024 >= cursor - 1 then
          next_free = math.min(next_free, number * 1024 + 1)
        end
      end
      cursor = next_free
    end
  end
end

-- Holds

local function unpack_hold(packed)
  return packed and cmsgpack.unpack(packed)
end

local function set_hold(token, hold)
  holds[token], holds_touched[token] = hold, true
end

local function give_back(kind, token, hold)
  stock, held = stock + hold[2], held - hold[2]
  count_units(hold[1], -hold[2])
  set_taken(hold[3], false)
  set_hold(token, false)
  change(kind, hold[1], hold[2], hold[3], '', hold[5], 0)
end

local function expire(token, hold)
  give_back('expired', token, hold)
  keep('h' .. token, bare(EXPIRED))
end

-- The tokens of the holds that are due, the oldest first, each once; nil at the end.
local page, page_index, page_offset = {}, 0, 0
local passed = 0 -- by next_token(): they are the first of the deadlines, and go all at once
local function next_token()
  page_index = page_index + 1
  if page_index > #page then
    page = redis.call('ZRANGEBYSCORE', KEYS[8], '-inf', now_s, 'LIMIT', page_offset, SWEEP_COUNT_MAX)
    page_index, page_offset = 1, page_offset + #page
    load(KEYS[7], page, holds, unpack_hold)
    if limit > 0 then
      local names = {}
      for i = 1, #page do
        names[#names + 1] = holds[page[i]] and holds[page[i]][1] or nil
      end
      load(KEYS[6], names, users, as_units)
    end
  end
  passed = page[page_index] and passed + 1 or passed
  return page[page_index]
end

local PASSED = 'passed' -- what touched a hold: its deadline goes with those that were passed

-- Returns up to so many expired holds to stock, or until so many units are there.
local function sweep(count_max, units)
  local swept = 0
  while due > 0 and due <= now_s and swept < count_max and stock < units do
    local token = next_token()
    if not token then
      local ahead = redis.call('ZRANGEBYSCORE', KEYS[8], '(' .. now_s, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
      due = tonumber(ahead[2] or 0)
    elseif holds[token] then
      expire(token, holds[token])
      holds_touched[token] = PASSED
      swept = swept + 1
    else
      swept = swept + (holds_touched[token] and 0 or 1) -- one that has ended in this batch, or a deadline of nothing
      holds_touched[token] = PASSED
    end
  end
  return swept
end

local due_before, more_due, lazy_count = due, false, LAZY_COUNT_MAX

-- The first answer of a request that was seen before, or MISMATCH; nil when it is new. `id` is 'r' and its request id.
local function seen(id, asked)
  local answer, asked_then = find_kept(id)
  if answer then
    return asked_then == asked and again(answer) or bare(MISMATCH)
  end
end

-- Counts a sale that is in the ledger as the last change; returns its row.
local function sell(user, quantity, item)
  sold = sold + quantity
  buyers[#buyers + 1] = user
  -- row(SUCCESS, stock, version, now_ms, item) in half the time
  return struct.pack('>BBBLBLBLBI4', 149, SUCCESS, 207, stock, 207, version, 207, now_ms, 206, item)
end

local SOLD_OUT_ROW = row(SOLD_OUT, 0)
local where = standing()

-- PURCHASE and RESERVE: {kind, user, quantity, id, item, asked, hold seconds, token}. What is asked for is the JSON of
-- user, quantity, item and request id: it is what the ledger will hold, and what a repeated request must say again.
local function take(request)
  local kind, user, quantity, id, item, asked = unpack(request, 1, 6)
  local content = kind == PURCHASE and asked or asked .. '/' .. request[7] -- a hold is asked for with its time
  if id ~= '' then
    local first = seen(id, content)
    if first then
      return first
    end
  end
  if where == 'closed' then
    return bare(CLOSED)
  elseif where == 'paused' then
    return bare(PAUSED)
  elseif where == 'not_open' then
    return row(NOT_OPEN, opens_at)
  elseif item > (items or 0) then
    return row(FAILED, ITEM_NOT_FOUND)
  elseif items and quantity > 1 then
    return row(FAILED, ONE_ITEM_AT_A_TIME)
  end
  if stock < quantity and quantity <= stock + held and due > 0 and due <= now_s then
    lazy_count = lazy_count - sweep(lazy_count, quantity)
  end
  if stock < quantity then
    return stock == 0 and SOLD_OUT_ROW or row(SOLD_OUT, stock)
  elseif limit > 0 and units_of(user) + quantity > limit then
    return bare(LIMIT_EXCEEDED)
  elseif items then
    if item == 0 then
      item = free_item()
      if not item then
        defect = 'its items are all taken, though units are left'
        return SOLD_OUT_ROW
      end
    elseif is_taken(item) then
      return bare(ITEM_TAKEN)
    end
    set_taken(item, true)
  end
  stock = stock - quantity
  count_units(user, quantity)
  if stock == 0 then
    went_out = true
  end
  local answer
  if kind == PURCHASE then
    if item == request[5] then
      version = version + 1
      changes[#changes + 1] = '["sold",' .. stock .. ',' .. asked .. ']'
    else
      change('sold', user, quantity, item, string.sub(id, 2), 0, 0)
    end
    answer = sell(user, quantity, item)
  else
    local expires_at = from_s + (request[7] == 0 and hold_s or math.min(request[7], hold_s))
    change('held', user, quantity, item, string.sub(id, 2), 0, expires_at)
    held = held + quantity
    set_hold(request[8], {user, quantity, item, string.sub(id, 2), version, from_s, expires_at})
    answer = row(HELD, request[8], expires_at, stock, version, item)
  end
  if id ~= '' then
    keep(id, answer .. content)
  end
  return answer
end

-- The live hold of a token; or nil, and the row with which it ended.
local function find_hold(token)
  local hold = holds[token]
  if hold and hold[7] <= now_s then
    expire(token, hold)
    hold = false
  end
  if hold then
    return hold
  end
  return nil, find_kept('h' .. token) or row(FAILED, HOLD_NOT_FOUND)
end

-- {kind, token, id}
local function confirm(request)
  local token, id = request[2], request[3]
  local named = '/' .. token -- no purchase reads like that: it begins with a quotation mark
  local first = id ~= '' and seen(id, named)
  if first then
    return first
  end
  local hold, ended = find_hold(token)
  if not hold then
    return kind_of(ended) == FAILED and ended or again(ended)
  end
  held = held - hold[2]
  change('confirmed', hold[1], hold[2], hold[3], id ~= '' and string.sub(id, 2) or hold[4], hold[5], 0)
  local answer = sell(hold[1], hold[2], hold[3])
  set_hold(token, false)
  keep('h' .. token, answer)
  if id ~= '' then
    keep(id, answer .. named)
  end
  return answer
end

-- What CANCEL and EXTEND say of a hold that ended.
local function tell(ended)
  local kind = kind_of(ended)
  if kind == SUCCESS then
    return row(FAILED, ALREADY_CONFIRMED)
  end
  return kind == FAILED and ended or again(ended)
end

-- {kind, token}
local function cancel(request)
  local token = request[2]
  local hold, ended = find_hold(token)
  if not hold then
    return tell(ended)
  end
  give_back('cancelled', token, hold)
  local answer = row(CANCELLED, stock, version)
  keep('h' .. token, answer)
  return answer
end

-- {kind, token, hold seconds}
local function extend(request)
  local token = request[2]
  local hold, ended = find_hold(token)
  if not hold then
    return tell(ended)
  end
  local seconds = request[3] == 0 and hold_s or request[3]
  local expires_at = math.min(from_s + seconds, hold[6] + math.max(hold_total_s, hold_s))
  if expires_at > hold[7] then
    hold[7] = expires_at
    set_hold(token, hold)
    change('extended', hold[1], hold[2], hold[3], '', hold[5], expires_at)
  end
  return row(HELD, token, hold[7], stock, version, hold[3])
end

-- The version of the last change: none while the ledger has not begun.
local function last_version()
  return (begun or #changes > 0) and version or 0
end

local function status()
  return row(OK, stock, sold, held, where, last_version())
end

-- {kind, quantity}
local function restock(request)
  local quantity = request[2]
  if stock + sold + held + quantity > (items and ITEMS_MAX or STOCK_MAX) then
    return row(FAILED, STOCK_TOO_LARGE)
  end
  stock, restocked, stock_restocked = stock + quantity, restocked + quantity, true
  items = items and items + quantity
  change('restocked', '', quantity, 0, '', 0, 0)
  return row(CHANGED, stock, version, false)
end

-- What the ledger says of a sale: {user, quantity, item, at}; nil when that version is none.
local function find_order(order_version)
  local written = changes[order_version - (version - #changes)] -- in this batch
  if written then
    local kind, _, user, quantity, item = unpack(cjson.decode(written))
    return (kind == 'sold' or kind == 'confirmed') and {user, quantity, item or 0, now_ms}
  end
  local found = redis.call('XREVRANGE', KEYS[5], order_version .. '-0', '-', 'COUNT', 1)[1]
  if not found then
    return nil
  end
  local next_version, message = tonumber(string.match(found[1], '^%d+')), found[2]
  if message[1] ~= 'at' then
    defect = 'its ledger holds what somebody else has written'
    return nil
  end
  for i = 3, #message, 2 do
    local value, index = cjson.decode(message[i + 1]), order_version - next_version + 1
    if message[i] == 'sales' then
      local user = value[2][index]
      return user and {user, 1, 0, tonumber(message[2])}
    elseif value[index] then
      local kind, _, user, quantity, item = unpack(value[index])
      return (kind == 'sold' or kind == 'confirmed') and {user, quantity, item or 0, tonumber(message[2])}
    end
    next_version = next_version + #value
  end
end

-- {kind, version, time in ms, epoch}
local function refund(request)
  local order_version = request[2]
  local order = request[4] == (epoch or new_epoch()) and find_order(order_version)
  if not order or order[4] ~= request[3] then
    return row(FAILED, ORDER_NOT_FOUND)
  end
  if refunds[order_version] == nil then
    refunds[order_version] = redis.call('HGET', KEYS[12], order_version)
  end
  if refunds[order_version] then
    return row(CHANGED, stock, version, true)
  end
  stock, sold = stock + order[2], sold - order[2]
  count_units(order[1], -order[2])
  set_taken(order[3], false)
  buyers[#buyers + 1] = {order[1]}
  change('refunded', order[1], order[2], order[3], '', order_version, 0)
  refunds[order_version] = version
  refund_values[#refund_values + 1], refund_values[#refund_values + 2] = order_version, version
  return row(CHANGED, stock, version, false)
end

local SWITCHES = {
  [PAUSE] = {'paused', 'paused'}, [RESUME] = {'open', 'resumed'}, [CLOSE] = {'closed', 'closed'},
}

-- {kind}
local function switch(request)
  local wanted, kind = SWITCHES[request[1]][1], SWITCHES[request[1]][2]
  if state == 'closed' and wanted ~= 'closed' then
    return row(FAILED, SALE_IS_CLOSED)
  elseif state == wanted then
    return row(CHANGED, stock, last_version(), true)
  end
  state, switched = wanted, true
  where = standing()
  change(kind, '', 0, 0, '', 0, 0)
  return row(CHANGED, stock, version, false)
end

local DECIDE = {
  [PURCHASE] = take, [RESERVE] = take, [CONFIRM] = confirm, [CANCEL] = cancel, [EXTEND] = extend, [STATUS] = status,
  [SWEEP] = function() return row(SWEPT, more_due) end,
  [RESTOCK] = restock, [REFUND] = refund, [PAUSE] = switch, [RESUME] = switch, [CLOSE] = switch,
}

local rows = {}
local function decide()
  -- every batch begins by returning expired holds to stock
  more_due = due > 0 and due <= now_s and sweep(SWEEP_COUNT_MAX, math.huge) == SWEEP_COUNT_MAX
  -- read what the requests name, in few calls
  local names, tokens, buying = {}, {}, {}
  for i = 1, count do
    local request = requests[i]
    local kind = request[1]
    if kind <= RESERVE then
      if request[4] ~= '' then
        names[#names + 1] = request[4]
      end
      if limit > 0 and stock + held > 0 then
        buying[#buying + 1] = request[2]
      end
    elseif kind <= EXTEND then
      tokens[#tokens + 1] = request[2]
      if kind == CONFIRM and request[3] ~= '' then
        names[#names + 1] = request[3]
      end
    end
  end
  load_kept(names)
  load(KEYS[7], tokens, holds, unpack_hold)
  load(KEYS[6], buying, users, as_units)
  for i = 1, count do
    rows[i] = DECIDE[requests[i][1]](requests[i])
  end
end

-- Nothing is written yet: whatever fails here, at keys that somebody else has written, has changed nothing.
local decided, trouble = pcall(decide)
if not decided then
  return type(trouble) == 'table' and trouble or defective(tostring(trouble))
end
local reply = {sequence, ROWS, (count < 16 and string.char(144 + count) or '\221' .. struct.pack('>I4', count))
  .. table.concat(rows)}
