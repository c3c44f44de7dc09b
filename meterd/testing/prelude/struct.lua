-- Rule: what the built-in library `struct` of a real server answers, this answers too.
--
-- For servers that lack it, as fakeredis does: put in front of a script's text, or below the `#!lua` line of a
-- function library. It declares the local `struct`, which then shadows the global, and sets no global. While it loads
-- it uses nothing but the language itself, because a library being loaded sees neither `string` nor `math`.
-- Runs on Lua 5.1 to 5.4.
--
--   struct.pack(fmt, ...)          -> string
--   struct.unpack(fmt, s [, pos])  -> the values, then the position after the last byte read
--   struct.size(fmt)               -> bytes
--     < >        little or big endian from here on (little at the start)
--     b B h H i I l L T   integers of 1, 2, 4, 8 and 8 bytes; lower case is signed. i and I take a size: i1 … I8
--     f d        float, double        x  one zero byte        s  zero-terminated string
--     c<n>       n bytes; c0 packs the whole string, and unpacks as many bytes as the number read before it says
--
-- Unlike the real one it refuses `!` (alignment), integers of no or more than 8 bytes, and numbers that no integer
-- of 8 bytes holds (there the real one's answer is the C compiler's), and it loses the payload of a NaN. Integers
-- above 2^53 are rounded as the real one rounds them.

local struct = {} -- luacheck: ignore 241
do
  local TWO20, TWO23, TWO31, TWO32 = 1048576, 8388608, 2147483648, 4294967296
  local byte, char, sub, find, floor, concat, unpack_table -- fetched by the first call

  ---------------------------------------------------------------------------------------------- integers
  -- A 64-bit quantity is a pair (hi, lo) of unsigned 32-bit halves: a double holds each exactly.

  -- The `size` low bytes of (hi, lo), 1 <= size <= 8.
  local function join(hi, lo, size, little)
    local bytes = {}
    for i = 1, size do
      if i == 5 then
        lo = hi
      end
      local b = lo % 256
      lo = (lo - b) / 256
      bytes[little and i or size + 1 - i] = floor(b)
    end
    return char(unpack_table(bytes))
  end

  -- The halves of the unsigned integer of `size` bytes at `pos`.
  local function split(s, pos, size, little)
    local hi, lo = 0, 0
    for i = size, 1, -1 do
      local b = byte(s, little and pos + i - 1 or pos + size - i)
      if i > 4 then
        hi = hi * 256 + b
      else
        lo = lo * 256 + b
      end
    end
    return hi, lo
  end

  -- The number that the halves stand for: unsigned, or a two's complement integer of `size` bytes.
  local function halves_to_number(hi, lo, size, signed)
    local span = floor(2 ^ (8 * ((size - 1) % 4 + 1)))
    if size <= 4 then
      return signed and lo >= span / 2 and lo - span or lo
    elseif signed and hi >= span / 2 then
      hi = hi - span
    end
    if hi >= -2097152 and hi < 2097152 then
      return hi * TWO32 + lo -- at most 2^53, and stays an integer where Lua has them
    end
    return hi * 4294967296.0 + lo -- one rounding, as a C cast to double does
  end

  -- The two's complement halves of a number truncated towards zero; nil if it does not fit.
  local function number_to_halves(n)
    n = n + 0.0
    if not (n >= -9223372036854775808.0 and n < 18446744073709551616.0) then
      return nil
    end
    local a = floor(n < 0 and -n or n) + 0.0
    local lo = a % TWO32
    local hi = (a - lo) / TWO32
    if n >= 0 or a == 0 then
      return hi, lo
    elseif lo == 0 then
      return TWO32 - hi, 0
    end
    return TWO32 - 1 - hi, TWO32 - lo
  end

  ---------------------------------------------------------------------------------------------- floats

  -- 1 for a negative number, -0 and a NaN whose sign bit is set.
  local function sign_bit(x)
    if x ~= x then
      return sub(tostring(x), 1, 1) == "-" and 1 or 0
    end
    return (x < 0 or (x == 0 and 1 / x < 0)) and 1 or 0
  end

  -- Finite x > 0 as m * 2^e with 1 <= m < 2. Every step multiplies by a power of two and so is exact.
  local function normalise(x)
    local e, k = 0, 512
    if x < 2 ^ -1022 then
      x, e = x * 2 ^ 54, -54
    end
    while k >= 1 do
      if x >= 2 ^ k then
        x, e = x * 2 ^ -k, e + k
      elseif x * 2 ^ k < 2 then
        x, e = x * 2 ^ k, e - k
      end
      k = k / 2
    end
    return x, e
  end

  -- The exponent and mantissa fields of |x| in an IEEE 754 format of `bits` mantissa bits and exponents up to `bias`;
  -- rounded to the nearest, ties to even. A mantissa of 2^bits stands for the next exponent.
  local function fields(x, bits, bias)
    x = x < 0 and -x or x
    if x ~= x then
      return 2 * bias + 1, 2 ^ (bits - 1)
    elseif x == 0 then
      return 0, 0
    elseif x == 2 * x then
      return 2 * bias + 1, 0
    end
    local m, e = normalise(x)
    local exponent, scaled
    if e > bias then
      return 2 * bias + 1, 0
    elseif e > -bias then
      exponent, scaled = e + bias, (m - 1) * 2 ^ bits
    else
      exponent, scaled = 0, m * 2 ^ (e + bias - 1 + bits)
    end
    local whole = floor(scaled)
    local rest = scaled - whole
    if rest > 0.5 or (rest == 0.5 and whole % 2 == 1) then
      whole = whole + 1
    end
    return exponent, whole
  end

  local function double_halves(x)
    local exponent, mantissa = fields(x, 52, 1023)
    local lo = mantissa % TWO32
    return sign_bit(x) * TWO31 + exponent * TWO20 + (mantissa - lo) / TWO32, lo
  end

  local function float_bits(x)
    local exponent, mantissa = fields(x, 23, 127)
    return sign_bit(x) * TWO31 + exponent * TWO23 + mantissa
  end

  -- The number with these fields.
  local function from_fields(sign, exponent, mantissa, bits, bias)
    local x
    if exponent <= 2 * bias then
      x = exponent == 0 and mantissa * 2 ^ (1 - bias - bits) or (1 + mantissa / 2 ^ bits) * 2 ^ (exponent - bias)
    else
      x = 1e308 * 10
      if mantissa ~= 0 then
        x = x - x
        return sign_bit(x) == sign and x or -x
      end
    end
    return sign == 1 and -(x + 0.0) or x
  end

  local function halves_to_double(hi, lo)
    local sign = hi >= TWO31 and 1 or 0
    local high = hi % TWO20
    return from_fields(sign, (hi - high) / TWO20 - sign * 2048, high * TWO32 + lo, 52, 1023)
  end

  local function bits_to_float(bits)
    local sign = bits >= TWO31 and 1 or 0
    local mantissa = bits % TWO23
    return from_fields(sign, (bits - mantissa) / TWO23 - sign * 256, mantissa, 23, 127)
  end

  ---------------------------------------------------------------------------------------------- formats

  local SIZES = { b = 1, h = 2, i = 4, l = 8, B = 1, H = 2, I = 4, L = 8, T = 8, f = 4, d = 8, x = 1, c = 1, s = 0 }
  local INTEGERS = "bhilBHILT"
  local formats, cached = {}, 0

  -- Errors name the line of the script that called struct.…: three levels up from here.
  local function bad_argument(n, name, why)
    error("bad argument #" .. n .. " to '" .. name .. "' (" .. why .. ")", 3)
  end

  local function bad_type(n, name, expected, value)
    error("bad argument #" .. n .. " to '" .. name .. "' (" .. expected .. " expected, got " .. type(value) .. ")", 3)
  end

  -- A format as a list of { kind, bytes, little, signed }; kind "n" is an integer. Kept, as scripts use few.
  local function parse(fmt, name)
    if not byte then
      byte, char, sub, find = string.byte, string.char, string.sub, string.find
      floor, concat, unpack_table = math.floor, table.concat, table.unpack or unpack -- luacheck: ignore 143
    end
    if formats[fmt] then
      return formats[fmt]
    elseif type(fmt) ~= "string" then
      error("bad argument #1 to '" .. name .. "' (string expected, got " .. type(fmt) .. ")", 3)
    end
    local items, little, pos = {}, true, 1
    while pos <= #fmt do
      local option = sub(fmt, pos, pos)
      local size, integer = SIZES[option], find(INTEGERS, option, 1, true)
      local _, last = find(fmt, "^%d+", pos + 1)
      if last and find("iIc", option, 1, true) then
        size, pos = tonumber(sub(fmt, pos + 1, last)), last
        if size > 2147483647 then
          error("integral size overflow", 3)
        elseif integer and (size < 1 or size > 8) then
          error("integral size " .. size .. " is not between 1 and 8", 3)
        end
      end
      if size then
        items[#items + 1] = { integer and "n" or option, size, little, integer and integer < 5 }
      elseif option == "<" or option == ">" then
        little = option == "<"
      elseif option ~= " " then
        error("bad argument #1 to '" .. name .. "' (invalid format option '" .. option .. "')", 3)
      end
      pos = pos + 1
    end
    if cached >= 256 then
      formats, cached = {}, 0
    end
    formats[fmt], cached = items, cached + 1
    return items
  end

  ---------------------------------------------------------------------------------------------- the library

  function struct.pack(fmt, ...)
    local items, args, n, out = parse(fmt, "pack"), { ... }, 0, {}
    for i = 1, #items do
      local kind, size, little = items[i][1], items[i][2], items[i][3]
      n = kind == "x" and n or n + 1
      local value = args[n]
      if kind == "x" then
        out[i] = "\0"
      elseif kind == "c" or kind == "s" then
        if type(value) == "number" then
          value = tostring(value)
        elseif type(value) ~= "string" then
          bad_type(n + 1, "pack", "string", value)
        end
        if #value < size then
          bad_argument(n + 2, "pack", "string too short") -- the real one is off by one, too
        end
        out[i] = (size > 0 and sub(value, 1, size) or value) .. (kind == "s" and "\0" or "")
      else
        local number = tonumber(value)
        if not number then
          bad_type(n + 1, "pack", "number", value)
        end
        local hi, lo
        if kind == "d" then
          hi, lo = double_halves(number)
        elseif kind == "f" then
          hi, lo = 0, float_bits(number)
        else
          hi, lo = number_to_halves(number)
        end
        if not hi then
          bad_argument(n + 1, "pack", "number has no integer of 8 bytes")
        end
        out[i] = join(hi, lo, size, little)
      end
    end
    return concat(out)
  end

  function struct.unpack(fmt, s, pos)
    local items, out, n = parse(fmt, "unpack"), {}, 0
    if type(s) == "number" then
      s = tostring(s)
    elseif type(s) ~= "string" then
      bad_type(2, "unpack", "string", s)
    end
    local start = pos == nil and 1 or tonumber(pos)
    if not start then
      bad_type(3, "unpack", "number", pos)
    elseif start == 0 then
      bad_argument(3, "unpack", "offset must be 1 or greater")
    end
    pos = floor(start)
    for i = 1, #items do
      local kind, size, little = items[i][1], items[i][2], items[i][3]
      if kind == "c" and size == 0 then
        size = n > 0 and tonumber(out[n])
        if not size then
          error("format 'c0' needs a previous size", 2)
        end
        size, n = floor(size), n - 1
      end
      if pos < 1 or size < 0 or pos + size - 1 > #s then
        bad_argument(2, "unpack", "data string too short")
      end
      n = kind == "x" and n or n + 1
      if kind == "n" then
        local hi, lo = split(s, pos, size, little)
        out[n] = halves_to_number(hi, lo, size, items[i][4])
      elseif kind == "d" then
        out[n] = halves_to_double(split(s, pos, 8, little))
      elseif kind == "f" then
        local _, bits = split(s, pos, 4, little)
        out[n] = bits_to_float(bits)
      elseif kind == "c" then
        out[n] = sub(s, pos, pos + size - 1)
      elseif kind == "s" then
        local zero = find(s, "\0", pos, true)
        if not zero then
          error("unfinished string in data", 2)
        end
        out[n], size = sub(s, pos, zero - 1), zero - pos + 1
      end
      pos = pos + size
    end
    out[n + 1] = pos
    return unpack_table(out, 1, n + 1)
  end

  function struct.size(fmt)
    local items, total = parse(fmt, "size"), 0
    for i = 1, #items do
      local kind, size = items[i][1], items[i][2]
      if kind == "s" or (kind == "c" and size == 0) then
        bad_argument(1, "size", "option '" .. (kind == "s" and "s" or "c0") .. "' has no fixed size")
      end
      total = total + size
    end
    return total
  end
end
