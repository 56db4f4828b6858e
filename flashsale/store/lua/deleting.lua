-- Deletes a product, whatever its keys hold; returns how many there were, but for the sessions. What takes long, of a
-- large sale, the store does beside its work.
--
-- KEYS  as in frame.lua
local function delete_product(product)
  local found = redis.call('UNLINK', KEYS[1], KEYS[2], unpack(KEYS, 4, 11))
  redis.call('UNLINK', KEYS[3])
  redis.pcall('SREM', KEYS[12], product)
  redis.pcall('ZREM', KEYS[13], product)
  return found
end
