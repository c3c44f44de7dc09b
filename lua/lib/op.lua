-- Operation ids: what was answered the first time, kept for the retention the caller names.
--
-- Stored: 16 bytes of request digest, 6 of the instant it ends, the answer, and a note of what it was: what the
-- answer does not say of where it charged (charge.sources; after STATUS_DONE: 6 bytes, its instant), its path
-- below the root, its cost names, a double per name, how long these four are (3, 2, 2 and 1 bytes, the last one
-- in doubles), and the verb (1 byte). Of what was given back the answer to that stands behind it, then its
-- length (4 bytes) and "!". The instant decides; the Redis TTL only frees memory.
-- @gives op CONSUMED REPORTED REFUNDED RESERVED COMMITTED RELEASED SUBSCRIBED GRANTED_CREDITS

local CONSUMED, REPORTED, REFUNDED, RESERVED, COMMITTED = "c", "r", "f", "h", "m"
local RELEASED, SUBSCRIBED, GRANTED_CREDITS = "x", "s", "g"
local GIVEN_BACK = 33 -- "!"

local op = {}

-- Checks the argument (empty, or 16 bytes of digest and 6 of retention in ms) and the key that goes
-- with it: were a record taken for an operation id, it would be overwritten.
function op.check(text, key)
  if text == "" then
    return false
  end
  if #text ~= 22 or sub(text, 17) == "\0\0\0\0\0\0" then
    bad("op: empty, or 16 bytes of digest and 6 of retention in ms")
  end
  local tag_ends = find(key or "", "}", 1, true) or 0
  local kind = sub(key or "", tag_ends, tag_ends + 3)
  if kind ~= "}:o:" and kind ~= "}:e:" then
    op.check_key(key, "[oe]")
  end
  return true
end

-- `kinds`: a pattern for the letter of its kind.
function op.check_key(key, kinds)
  if not find(key or "", "^[^{]*{[^}]*}:" .. kinds .. ":") then
    bad("keys: that of the operation id is missing")
  end
end

local function ends_of(stored)
  if #stored < 22 then
    error("METERD-LAYOUT an operation id of " .. #stored .. " bytes", 0)
  end
  return (sunpack("<I6", stored, 17))
end

-- The retention that stands at the end of an argument, and its digits; nearly always those of the last one.
local ending, retention, digits
local function read_retention(text)
  local tail = sub(text, 17)
  if tail ~= ending then
    retention = sunpack("<I6", tail)
    ending, digits = tail, format("%.0f", retention)
  end
  return retention, digits
end

-- The bytes to store, and how long from now they are worth keeping, as digits (nil on a test clock).
function op.value(text, now, answer, manual, note)
  local kept, px = read_retention(text)
  return spack("<c16I6", text, min(now + kept, NEVER)) .. answer .. note, not manual and px or nil
end

-- The same of a charge of a root by itself, whose answer says where it charged.
function op.plain_value(text, now, answer, manual, verb, names, packed)
  local kept, px = read_retention(text)
  local ends, count = min(now + kept, NEVER), #packed / 8
  local value = spack("<c16I6c0c0c0I3I2I2Bc1", text, ends, answer, names, packed, 0, 0, #names, count, verb)
  return value, not manual and px or nil
end

-- What of the path of a call's keys stands below its root.
function op.below(root, key)
  return sub(key, #root + 1)
end

function op.note(verb, below, names, packed, sources)
  local lengths = spack("<I3I2I2Bc1", #sources, #below, #names, #packed / 8, verb)
  return sources .. below .. names .. packed .. lengths
end

-- What a stored operation was; its answer stands from 23 to `ends_at`. Nil: there is none (any more), or it was
-- stored without a note.
function op.read(stored, now)
  if not stored or ends_of(stored) <= now then
    return nil
  end
  local found, last = { stored = stored }, #stored
  if byte(stored, last) == GIVEN_BACK and last > 27 then
    local size = sunpack("<I4", stored, last - 4)
    found.given_back, last = sub(stored, last - 4 - size, last - 5), last - 5 - size
  end
  local verb = sub(stored, last, last)
  if last < 32 or not find(verb, "^[crfhmxsg]$") then
    return nil
  end
  local sources, below, names, count = sunpack("<I3I2I2B", stored, last - 8)
  local amounts_at = last - 8 - 8 * count
  local names_at = amounts_at - names
  local below_at = names_at - below
  found.verb, found.ends_at = verb, below_at - sources - 1
  if found.ends_at < 23 then
    error("METERD-LAYOUT an operation id of " .. #stored .. " bytes", 0)
  end
  found.sources, found.below = sub(stored, below_at - sources, below_at - 1), sub(stored, below_at, names_at - 1)
  found.names, found.packed = sub(stored, names_at, amounts_at - 1), sub(stored, amounts_at, last - 9)
  return found
end

-- The stored answer as a replay, a conflict, or nil where the id is new.
function op.find(stored, text, now)
  if not stored or ends_of(stored) <= now then
    return nil
  elseif sub(stored, 1, 16) ~= sub(text, 1, 16) then
    return STATUS_CONFLICT
  end
  local found = op.read(stored, now)
  return STATUS_REPLAY .. sub(stored, 23, found and found.ends_at or -1)
end

-- Of an operation and the end of a hold of the same id the one that is meant, and which of the two it is: what
-- a reservation came to is said by its end.
function op.choose(stored, ended, now)
  local found, settled = op.read(stored, now), op.read(ended, now)
  if settled and (not found or found.verb == RESERVED) then
    return settled, 2
  end
  return found, 1
end

-- The bytes to store of an operation that was given back, and for how long, as digits (nil on a test clock).
function op.marked(found, answer, now, manual)
  local stored = found.stored
  local px = format("%.0f", ends_of(stored) - now)
  return stored .. answer .. spack("<I4", #answer) .. "!", not manual and px or nil
end
