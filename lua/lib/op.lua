-- Operation ids: what was answered the first time, kept for the retention the caller names.
--
-- Stored: 16 bytes of request digest, 6 of the instant it ends, then the answer. The instant decides;
-- the Redis TTL only frees memory.
-- @gives op

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
  if not find(key or "", "^[^{]*{[^}]*}:[oe]:") then
    bad("keys: that of the operation id is missing")
  end
  return true
end

-- The stored answer as a replay, a conflict, or nil where the id is new.
function op.find(stored, text, now)
  if not stored then
    return nil
  end
  if #stored < 22 then
    error("METERD-LAYOUT an operation id of " .. #stored .. " bytes", 0)
  end
  local digest, ends = sunpack("<c16I6", stored)
  if ends <= now then
    return nil
  end
  if digest ~= sub(text, 1, 16) then
    return STATUS_CONFLICT
  end
  return STATUS_REPLAY .. sub(stored, 23)
end

-- The bytes to store, and how long from now they are worth keeping (nil on a test clock).
function op.value(text, now, answer, manual)
  local digest, retention = sunpack("<c16I6", text)
  return spack("<c16I6", digest, min(now + retention, NEVER)) .. answer, not manual and retention or nil
end
