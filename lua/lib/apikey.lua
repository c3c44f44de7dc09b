-- API keys: one string per key, which every verification reads together with the records that it charges.
--
--   byte 1      layout version (1)
--   byte 2      flags: 1 disabled, 2 revoked
--   byte 3-8    the instant from which on it is refused; 2^48 - 1: never
--   byte 9-40   SHA-256 of the secret
--   byte 41-46  the instant it was made
--   byte 47-52  the instant until which the former secret is good; 0: there is none
--   byte 53-84  SHA-256 of the former secret
--   byte 85-    msgpack {o = {segment, ...}, j = plan, n = name, m = JSON text, p = prefix, i = SHA-256}: its owner,
--               the plan that the owner's root joins, its name, meta, what its secrets begin with, and as what it
--               was imported; all but o and p may be missing
--
-- A secret itself never comes here.
-- @gives apikey

local VERSION, DISABLED, REVOKED = 1, 1, 2
local FRONT, BEHIND = "<BBI6c32I6I6c32", 85
local NOBODY = "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"

local apikey = {}

-- Checks that `key` is that of an API key: another one would be read, and written, as what it is not.
function apikey.check(key)
  if not find(key or "", "^[^{]*{[^}]*}:k:") then
    bad("keys: that of an API key is missing")
  end
end

function apikey.digest(text)
  if #text ~= 32 then
    bad("sha: 32 bytes")
  end
  return text
end

-- Digits as ms; the last instant that an entry can hold stands for any later.
function apikey.ms(text, what, digits)
  if not find(text, "^%d+$") or #text > digits then
    bad(what .. ": milliseconds as up to " .. digits .. " digits")
  end
  return min(tonumber(text), NEVER)
end

-- The bytes of a new one.
function apikey.fresh(now, sha, expires, about)
  return spack(FRONT, VERSION, 0, expires, sha, now, 0, NOBODY) .. about
end

-- The fields of the front.
local function front(stored)
  if #stored < BEHIND or byte(stored) ~= VERSION then
    error("METERD-LAYOUT an API key of " .. #stored .. " bytes, layout " .. (byte(stored) or 0), 0)
  end
  return sunpack(FRONT, stored)
end

-- The instant of a call that reads records: none of them was written later.
local function instant(now, values, last)
  for i = 1, last do
    if values[i] and #values[i] >= 20 then
      now = max(now, (sunpack("<I6", values[i], 15)))
    end
  end
  return now
end

-- What becomes of a secret with this digest: the code, 0 if it is good, and the instant of the call; nil where there
-- is no such key. `now`: what the clock says; `values[1..last]`: the records of the call, which may know better.
local function judge(stored, sha, now, values, last)
  local _, flags, expires, kept, _, until_ms, former = front(stored)
  now = instant(now, values, last)
  if flags >= REVOKED or kept ~= sha and (former ~= sha or now >= until_ms) then
    return nil
  end
  return flags == DISABLED and 5 or expires < NEVER and now >= expires and 6 or 0, now
end

-- If the secret is good, what stands behind the front. Else nil, and what to answer.
function apikey.admit(key, stored, sha, now, values, last)
  local version, flags, expires, kept
  if stored and #stored >= BEHIND then
    version, flags, expires, kept = sunpack("<BBI6c32", stored)
    if kept == sha and expires == NEVER and flags == 0 and version == VERSION then
      return sub(stored, BEHIND) -- nearly always
    end
  end
  local code, at
  if stored then
    code, at = judge(stored, sha, now, values, last)
  end
  if not code then
    apikey.check(key)
    return nil, STATUS_UNKNOWN
  elseif code > 0 then
    return nil, spack("<BBBBdd", 0, code, 0, 0, at, NONE) .. sub(stored, BEHIND)
  end
  return sub(stored, BEHIND)
end

-- Reads the one under `key` to change it: a table of what it says, or nil where there is none.
function apikey.open(key)
  apikey.check(key)
  local stored = call("GET", key)
  if not stored then
    return nil
  end
  local _, flags, expires, sha, created, until_ms, former = front(stored)
  local readable, about = pcall(munpack, sub(stored, BEHIND))
  if not readable or type(about) ~= "table" then
    error("METERD-LAYOUT an API key of " .. #stored .. " bytes", 0)
  end
  return {
    disabled = flags % 2 == 1, revoked = flags >= REVOKED, expires = expires, sha = sha, created = created,
    until_ms = until_ms, former = former, about = about,
  }
end

-- Writes it back.
function apikey.put(key, entry)
  local flags = (entry.disabled and DISABLED or 0) + (entry.revoked and REVOKED or 0)
  local sha, created, until_ms, former = entry.sha, entry.created, entry.until_ms, entry.former
  call("SET", key, spack(FRONT, VERSION, flags, entry.expires, sha, created, until_ms, former) .. mpack(entry.about))
end
