-- Bindings, limits and the few helpers that everything else stands on.
--
-- A function library sees no globals while it loads, so the standard library is bound on the first
-- call.

local call, spack, sunpack, spread, floor, ceil, max, min, huge
local sub, byte, char, find, format, concat, mpack, munpack, sha1hex

local NEVER = 281474976710655 -- 2^48 - 1: an instant that no clock reaches
local NONE = -9007199254740992 -- -2^53: "no value" where a reply carries a number
local FIGURES = "<Bddddddd" -- a limit in an answer: fits, limit, used, left, over, applied, resets at, retry at
local MAX_AMOUNT = 1000000000000000 -- 10^15: what one call may name
local MAX_RATE = 1000000000000 -- 10^12: limit and burst of a bucket
local MAX_COUNTER = 9000000000000000 -- 9 * 10^15: what a counter may hold

-- First byte of an answer; 0, decided, is written where the answer is packed.
local STATUS_REPLAY, STATUS_NEED, STATUS_STALE = "\1", "\2", "\3"
local STATUS_CONFLICT, STATUS_DONE, STATUS_UNKNOWN, STATUS_HOLDS = "\4", "\5", "\6", "\7"
local STATUS_DUE = "\8"

-- A limit in hand: its state, and what the call does with it. These tables are reused from call to call,
-- so that nothing is allocated per limit; a call reads only what it has filled.
local function new_hand()
  return {
    -- what the call wants of it: the limit as it is in force, the amount, whether it fits, what was applied
    limit = false, cost = 0, fits = true, applied = 0, charged = false,
    -- every kind: units used, and left (huge: no bound)
    used = 0, left = 0,
    -- pools and fixed windows; the rest only pools
    start = 0, fin = 0, anchor = 0, drawn = 0, over = 0, carried = 0, marks = 0,
    beyond = 0, -- of a pool: how much of the last charge went over
    -- of a pool with grants (see grants.lua): those that are live, what they have left, where a charge came from
    grants = nil, granted = 0, taken = nil,
    -- of a pool: what it has to say of the charge, figures of a period that is over, whether this call opened one
    fired = false, ended = false, opened = false,
    -- sliding windows: index of the current one, use of the previous; token buckets: see there
    window = 0, previous = 0, fraction = 0, tick = 0,
  }
end

local function bind()
  call = redis.call
  spack, sunpack = struct.pack, struct.unpack
  mpack, munpack = cmsgpack.pack, cmsgpack.unpack
  spread = unpack
  floor, ceil, max, min, huge = math.floor, math.ceil, math.max, math.min, math.huge
  sub, byte, char, find, format = string.sub, string.byte, string.char, string.find, string.format
  concat, sha1hex = table.concat, redis.sha1hex
end

-- Ends the call before anything was written. The marker lets the client tell a refused argument from
-- a bug of ours.
local function bad(what)
  error("METERD-ARGUMENT " .. what, 0)
end

-- The same where a record is not what it should be.
local function unreadable(rec)
  error("METERD-LAYOUT a record of " .. #rec .. " bytes", 0)
end

local function hex(text)
  return format(("%02x"):rep(#text), byte(text, 1, -1))
end

local second, second_ms -- of the last call: reading a number costs more than comparing a text

-- The instant of the call in ms: the test clock where one is given, else the server's.
local function clock(text)
  if text == "" then
    local t = call("TIME")
    local seconds, us = t[1], t[2] + 0
    if seconds ~= second then
      second, second_ms = seconds, seconds * 1000
    end
    return second_ms + (us - us % 1000) / 1000
  end
  if not find(text, "^%d+$") or #text > 14 then
    bad("now: milliseconds as up to 14 digits, or empty for the server's clock")
  end
  return tonumber(text)
end

-- parts[1..n] as one string. Where they are few, one concatenation beats table.concat.
local function join(parts, n)
  if n == 2 then
    return parts[1] .. parts[2]
  elseif n == 3 then
    return parts[1] .. parts[2] .. parts[3]
  elseif n <= 6 then
    for i = n + 1, 6 do
      parts[i] = ""
    end
    return parts[1] .. parts[2] .. parts[3] .. parts[4] .. parts[5] .. parts[6]
  end
  return concat(parts, "", 1, n)
end
