-- How many changes of a product are not in the database yet, if there is one: init and reset would lose them. -1 when
-- the database knows more of it than this store.
local function unmoved()
  local version, moved = 0, 0
  if redis.call('EXISTS', KEYS[14]) == 1 and redis.call('TYPE', KEYS[4]).ok == 'hash' then
    version = tonumber(redis.call('HGET', KEYS[4], 'version') or 0) or 0
    moved = tonumber(redis.call('HGET', KEYS[4], 'moved') or 0) or 0
  end
  if redis.pcall('HGET', KEYS[4], 'state') == 'frozen' then
    return -1
  end
  return math.max(version - moved, 0)
end
