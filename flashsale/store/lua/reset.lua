-- Deletes the product that an operator names.
--
-- KEYS  as in frame.lua, and 14 products_moved
-- ARGV  1 product id   2 discard: '1' also what is not in the database yet
-- Returns how many of its keys there were, but for the sessions, and how many changes stand in the way (unmoved.lua).

local behind = ARGV[2] ~= '1' and unmoved() or 0
if behind ~= 0 then
  return {0, behind}
end
return {delete_product(ARGV[1]), 0}
