-- What is known of the product: read for the whole batch at once where that is possible, changed in memory by the rules,
-- written at the end.

local PURCHASE, RESERVE, CONFIRM, CANCEL, EXTEND, STATUS, SWEEP, RESTOCK, REFUND, PAUSE, RESUME, CLOSE =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
-- What a row of the reply begins with (store/encoding.py).
local DUPLICATE, SUCCESS, HELD, CANCELLED, EXPIRED, SOLD_OUT, LIMIT_EXCEEDED, NOT_OPEN, CLOSED, PAUSED, ITEM_TAKEN,
  MISMATCH, OK, CHANGED, SWEPT, FAILED = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
local HOLD = 16 -- no answer, but what is kept under the token of a hold until it is confirmed or cancelled
-- What FAILED says.
local REASON = {
  hold_not_found = 1, item_not_found = 2, order_not_found = 3, already_confirmed = 4, one_item_at_a_time = 5,
  sale_is_closed = 6, stock_too_large = 7,
}

local rules = {} -- kind of a request -> function(request), which decides it and returns its row of the reply

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

local terms = redis.call('HMGET', KEYS[4], 'hold_s', 'hold_total_s', 'cursor', 'restocked', 'since', 'since_before',
  'refunded')
local hold_s, hold_total_s = tonumber(terms[1] or HOLD_S), tonumber(terms[2] or HOLD_TOTAL_S)
local cursor, restocked = tonumber(terms[3] or 1), tonumber(terms[4] or 0) -- cursor: no item below it is free
local since, since_before, refunded = tonumber(terms[5] or 0), tonumber(terms[6] or 0), tonumber(terms[7] or 0)
if not (hold_s and hold_total_s and cursor and restocked and since and since_before and refunded) then
  return defective('its counters are not what was written')
end

-- A key that is gone is not an empty one: who has bought, what is taken, held and promised would be forgotten.
local expected = {}
local function expect(is_expected, name)
  if is_expected then
    expected[#expected + 1] = name
  end
end
expect(limit > 0 and sold + held > 0, KEYS[6])
expect(held > 0, KEYS[7])
expect(items and sold + held > 0, KEYS[8])
expect(since > 0, KEYS[9])
expect(since_before > 0, KEYS[10])
if #expected > 0 and redis.call('EXISTS', unpack(expected)) < #expected then
  return defective('one of its keys is gone')
end

local users, users_touched = {}, {} -- user -> units bought and held
local from_s = math.ceil(now_ms / 1000) -- holds count whole seconds, and from the next one: never less than was asked for
local kept, kept_values = {}, {} -- '=' + request id -> row, then what was asked for; token -> row, or hold
local deadlines, deadlines_touched = {}, {} -- token -> when its hold expires, for as long as it stands; or false
local taken, taken_touched = {}, {} -- item -> whether it is sold or held
local refunds, refund_values = {}, {} -- version of an order -> that of its refund
local buyers = {} -- user ids to push; {user} for one to take off
local changes = {} -- of the ledger, as JSON: [kind, stock, user, quantity, item, request id, ref, expires at]
local went_out = false -- the last unit
local switched, stock_restocked, defect = false, false, nil

-- Reads what is not known of these names yet, by HMGET or what else takes a key and many names.
local function load(command, key, names, into, convert)
  local missing = {}
  for i = 1, #names do
    if into[names[i]] == nil then
      missing[#missing + 1] = names[i]
    end
  end
  for from = 1, #missing, CHUNK do
    local found = redis.call(command, key, unpack(missing, from, math.min(from + CHUNK - 1, #missing)))
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

-- What is kept of answers, and of holds and their ends. It is in two hashes: one is written since `since`; when it has been
-- for as long as records are kept at least, it becomes the other one, and what was in that is forgotten.

local function keep(key, record)
  kept[key] = record
  kept_values[#kept_values + 1], kept_values[#kept_values + 2] = key, record
end

local function load_kept(names)
  if since > 0 then
    load('HMGET', KEYS[9], names, kept, itself)
  end
  if since_before > 0 then
    for i = 1, #names do
      kept[names[i]] = kept[names[i]] or nil
    end
    load('HMGET', KEYS[10], names, kept, itself)
  end
end

local function unreadable()
  error('its records are not what was written', 0)
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
      unreadable()
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
      chunks[number] = redis.call('GETRANGE', KEYS[8], number * 128, number * 128 + 127)
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
      local free = redis.call('BITPOS', KEYS[8], 0, (cursor - 1) / 8) -- -1 behind the end of the bitmap
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
