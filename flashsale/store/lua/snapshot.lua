-- Reads all keys that a product's ledger answers for, at one instant. Changes nothing.
--
-- KEYS  as in frame.lua
-- ARGV  1 product id   2 id of the first message of the ledger that is wanted   3 how many buyers, from the oldest, are
--       known; '' when none are wanted   4 msgpack array of users whose units are wanted
-- Returns {types of the keys, stock, sale, first message, id of the last message ever, messages from that id on, count of
--   buyers, the newer ones, count of users, {user, units, …} of those wanted and those in the messages, holds, deadlines,
--   items, refunds, whether the product is listed, when it is due}; false for what is no key of that type.

local TYPES = {'string', 'list', 'hash', 'hash', 'stream', 'hash', 'hash', 'zset', 'string', 'hash', 'hash', 'hash', 'set',
  'zset'}
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

return {types, read(1, 'GET'), read(4, 'HGETALL'), read(5, 'XRANGE', '-', '+', 'COUNT', 1), last_id, messages,
  read(2, 'LLEN'), ARGV[3] ~= '' and read(2, 'LRANGE', 0, -1 - ARGV[3]), read(6, 'HLEN'), users, read(7, 'HGETALL'),
  read(8, 'ZRANGE', 0, -1, 'WITHSCORES'), read(9, 'GET'), read(12, 'HGETALL'), read(13, 'SISMEMBER', ARGV[1]),
  read(14, 'ZSCORE', ARGV[1])}
