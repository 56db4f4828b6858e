-- Reads all keys that a product's ledger answers for, at one instant. Changes nothing.
--
-- KEYS  as in frame.lua
-- ARGV  1 product id   2 id of the first message of the ledger that is wanted   3 how many buyers, from the oldest, are
--       known; '' when none are wanted   4 msgpack array of users whose units are wanted
-- Returns {Unix time, types of the keys, stock, sale, first message, id of the last message ever, messages from that id on, count of
--   buyers, the newer ones, count of users, {user, units, …} of those wanted and those in the messages, {token,
--   deadline, …}, {token, record, …} of those with a deadline, items, refunds, whether the product is listed, when it is due}; false for what is no key of that type.

local CHUNK = 1000 -- unpack() puts its values on the C stack, which takes 8,000
local TYPES = {'string', 'list', 'hash', 'hash', 'stream', 'hash', 'zset', 'string', 'hash', 'hash', 'hash', 'set', 'zset'}
local types = {}
for i, key in ipairs(KEYS) do
  types[i] = redis.call('TYPE', key).ok
end

local function read(number, command, ...)
  return types[number] == TYPES[number] and redis.call(command, KEYS[number], ...)
end

local last_id = false
if types[5] == 'stream' then
  local info = redis.call('XINFO', 'STREAM', KEYS[5])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      last_id = info[i + 1]
    end
  end
end

local messages = read(5, 'XRANGE', ARGV[2], '+')
local wanted, names = {}, cmsgpack.unpack(ARGV[4])
for i = 1, #names do
  wanted[names[i]] = true
end
for _, message in ipairs(messages or {}) do
  for i = 1, #message[2], 2 do
    local readable, changes = pcall(cjson.decode, message[2][i] == 'changes' and message[2][i + 1] or '[]')
    for _, change in ipairs(readable and type(changes) == 'table' and changes or {}) do
      if type(change) == 'table' and type(change[3]) == 'string' and change[3] ~= '' then
        wanted[change[3]] = true
      end
    end
  end
end
local users = {}
for user in pairs(wanted) do
  users[#users + 1] = user
  users[#users + 1] = read(6, 'HGET', user)
end

local deadlines, records = read(7, 'ZRANGE', 0, -1, 'WITHSCORES') or {}, {}
for from = 1, #deadlines, 2 * CHUNK do
  local tokens = {}
  for i = from, math.min(from + 2 * CHUNK - 1, #deadlines), 2 do
    tokens[#tokens + 1] = deadlines[i]
  end
  local found = read(9, 'HMGET', unpack(tokens)) or {}
  local found_before = read(10, 'HMGET', unpack(tokens)) or {}
  for i, token in ipairs(tokens) do
    local record = found[i] or found_before[i]
    if record then
      records[#records + 1], records[#records + 2] = token, record
    end
  end
end

return {tonumber(redis.call('TIME')[1]), types, read(1, 'GET'), read(4, 'HGETALL'), read(5, 'XRANGE', '-', '+', 'COUNT', 1), last_id, messages,
  read(2, 'LLEN'), ARGV[3] ~= '' and read(2, 'LRANGE', 0, -1 - ARGV[3]), read(6, 'HLEN'), users, deadlines, records,
  read(8, 'GET'), read(11, 'HGETALL'), read(12, 'SISMEMBER', ARGV[1]),
  read(13, 'ZSCORE', ARGV[1])}
