--- set_meta: store what the application wants to keep beside a record.
-- KEYS  1 meta
-- ARGV  1 field, 2 value, 3 field, 4 value, ... up to 128 pairs; a value is JSON text, empty: the field goes
-- RETURNS status 5 done
-- WRITES the meta: msgpack {field = value}
-- @needs base
local function set_meta(keys, args)
  if #keys ~= 1 or #args < 2 or #args % 2 == 1 or #args > 256 then
    bad("set_meta takes one key and 1 to 128 pairs of field and value")
  end
  local stored, readable, fields = call("GET", keys[1]), true, {}
  if stored then
    readable, fields = pcall(munpack, stored)
  end
  if not readable or type(fields) ~= "table" then
    error("METERD-LAYOUT meta that is no map", 0)
  end
  for i = 1, #args, 2 do
    if args[i] == "" then
      bad("set_meta: a field has a name")
    end
    fields[args[i]] = args[i + 1] ~= "" and args[i + 1] or nil
  end
  if next(fields) == nil then
    call("DEL", keys[1])
  else
    call("SET", keys[1], mpack(fields))
  end
  return STATUS_DONE
end
