-- Rule: what the built-in library `cmsgpack` of a real server answers, this answers too.
--
-- Stands below struct.lua, whose local `struct` it uses; otherwise everything said there holds here.
--
--   cmsgpack.pack(...)  -> string     one MessagePack value after the other
--   cmsgpack.unpack(s)  -> the values
--
-- As in the real one: whole numbers are packed as the shortest integer, others as a float where that is exact; a table
-- is an array if its keys are exactly 1 … n (the empty one is), else a map; a table nested deeper than 16 and whatever
-- MessagePack has no form for is packed as nil; `bin` and `ext` are refused; a uint64 is read as if signed.

-- luacheck: read globals struct
local cmsgpack = {} -- luacheck: ignore 241
do
  local NESTING_MAX = 16
  local byte, char, sub, floor, concat, unpack_table -- fetched by the first call

  local function setup()
    byte, char, sub = string.byte, string.char, string.sub
    floor, concat, unpack_table = math.floor, table.concat, table.unpack or unpack -- luacheck: ignore 143
  end

  ---------------------------------------------------------------------------------------------- pack

  local function pack_number(n)
    if n ~= floor(n) or n >= 9223372036854775808.0 or n < -9223372036854775808.0 then
      if struct.unpack("f", struct.pack("f", n)) == n then
        return struct.pack(">Bf", 0xCA, n)
      end
      return struct.pack(">Bd", 0xCB, n)
    elseif n >= 0 then
      if n <= 127 then
        return char(floor(n))
      elseif n <= 0xFF then
        return struct.pack(">BB", 0xCC, n)
      elseif n <= 0xFFFF then
        return struct.pack(">BH", 0xCD, n)
      elseif n <= 0xFFFFFFFF then
        return struct.pack(">BI4", 0xCE, n)
      end
      return struct.pack(">BI8", 0xCF, n)
    elseif n >= -32 then
      return char(floor(n) + 256)
    elseif n >= -128 then
      return struct.pack(">Bb", 0xD0, n)
    elseif n >= -32768 then
      return struct.pack(">Bh", 0xD1, n)
    elseif n >= -2147483648 then
      return struct.pack(">Bi4", 0xD2, n)
    end
    return struct.pack(">Bi8", 0xD3, n)
  end

  -- What precedes n elements or bytes: up to `short_max` in one byte, else a tag and n in two bytes or (the next tag)
  -- in four.
  local function head(n, short, short_max, tag16)
    if n <= short_max then
      return char(short + n)
    elseif n <= 0xFFFF then
      return struct.pack(">BH", tag16, n)
    end
    return struct.pack(">BI4", tag16 + 1, n)
  end

  -- The number of pairs in a table, and whether its keys are exactly 1 … that number.
  local function measure(t)
    local count, max, array = 0, 0, true
    for key in pairs(t) do
      count = count + 1
      if type(key) ~= "number" or key < 1 or key ~= floor(key) then
        array = false
      elseif key > max then
        max = key
      end
    end
    return count, array and max == count
  end

  local function pack_value(value, level, out)
    local kind = type(value)
    if kind == "table" and level < NESTING_MAX then
      local count, array = measure(value)
      if array then
        out[#out + 1] = head(count, 0x90, 15, 0xDC)
        for i = 1, count do
          pack_value(value[i], level + 1, out)
        end
      else
        out[#out + 1] = head(count, 0x80, 15, 0xDE)
        for key, item in pairs(value) do
          pack_value(key, level + 1, out)
          pack_value(item, level + 1, out)
        end
      end
    elseif kind == "string" then
      local long = #value > 31 and #value <= 0xFF
      out[#out + 1] = long and struct.pack("BB", 0xD9, #value) or head(#value, 0xA0, 31, 0xDA)
      out[#out + 1] = value
    elseif kind == "number" then
      out[#out + 1] = pack_number(value)
    elseif kind == "boolean" then
      out[#out + 1] = value and "\195" or "\194"
    else
      out[#out + 1] = "\192"
    end
  end

  function cmsgpack.pack(...)
    if not byte then
      setup()
    end
    local args, given, out = { ... }, select("#", ...), {}
    if given == 0 then
      error("bad argument #0 to 'pack' (MessagePack pack needs input.)", 2)
    end
    for i = 1, given do
      pack_value(args[i], 0, out)
    end
    return concat(out)
  end

  ---------------------------------------------------------------------------------------------- unpack

  local MISSING, BAD = "Missing bytes in input.", "Bad data format in input."
  local NUMBERS = {
    [0xCA] = "f", [0xCB] = "d", [0xCC] = "B", [0xCD] = "H", [0xCE] = "I4", [0xCF] = "i8", [0xD0] = "b", [0xD1] = "h",
    [0xD2] = "i4", [0xD3] = "i8",
  }
  local LENGTHS = {
    [0xD9] = "B", [0xDA] = "H", [0xDB] = "I4", [0xDC] = "H", [0xDD] = "I4", [0xDE] = "H", [0xDF] = "I4",
  }

  -- The integer or float of format `fmt` after the tag at `pos`, the position after it, an error.
  local function unpack_number(fmt, s, pos)
    fmt = ">" .. fmt
    if pos + struct.size(fmt) > #s then
      return nil, nil, MISSING
    end
    return struct.unpack(fmt, s, pos + 1)
  end

  local unpack_value

  -- `count` values as an array, or pairs as a map; then the position after them, an error.
  local function unpack_table_of(count, map, s, pos)
    local t = {}
    for i = 1, count do
      local key, value, problem = i, nil, nil
      if map then
        key, pos, problem = unpack_value(s, pos)
      end
      if not problem then
        value, pos, problem = unpack_value(s, pos)
      end
      if problem then
        return nil, nil, problem
      end
      t[key] = value
    end
    return t, pos
  end

  -- The value at `pos`, the position after it, an error.
  function unpack_value(s, pos)
    local tag = byte(s, pos)
    if not tag then
      return nil, nil, MISSING
    elseif tag < 0x80 then
      return tag, pos + 1
    elseif tag >= 0xE0 then
      return tag - 256, pos + 1
    elseif tag == 0xC0 then
      return nil, pos + 1
    elseif tag == 0xC2 or tag == 0xC3 then
      return tag == 0xC3, pos + 1
    elseif NUMBERS[tag] then
      return unpack_number(NUMBERS[tag], s, pos)
    end
    local length, start, problem
    if LENGTHS[tag] then
      length, start, problem = unpack_number(LENGTHS[tag], s, pos)
    elseif tag < 0xC0 then
      length, start = tag < 0xA0 and tag % 16 or tag % 32, pos + 1
    else
      problem = BAD
    end
    if problem then
      return nil, nil, problem
    elseif tag < 0xA0 or tag >= 0xDC then
      return unpack_table_of(length, tag < 0x90 or tag >= 0xDE, s, start)
    elseif start + length - 1 > #s then
      return nil, nil, MISSING
    end
    return sub(s, start, start + length - 1), start + length
  end

  function cmsgpack.unpack(s)
    if not byte then
      setup()
    end
    if type(s) == "number" then
      s = tostring(s)
    elseif type(s) ~= "string" then
      error("bad argument #1 to 'unpack' (string expected, got " .. type(s) .. ")", 2)
    end
    local out, n, pos = {}, 0, 1
    while pos <= #s do
      local value, after, problem = unpack_value(s, pos)
      if problem then
        error(problem, 2)
      end
      n, pos = n + 1, after
      out[n] = value
    end
    return unpack_table(out, 1, n)
  end
end
