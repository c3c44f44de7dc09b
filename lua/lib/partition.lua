-- What the records of a partition share: a stream of events, the outbox (a stream of what is billed), and the index
-- (a sorted set: a subject, as its key has it, by the ms at which harvest has to look). A call names their keys only
-- when it has something for them.
-- @gives partition

local MOST_EVENTS = "100000" -- about; what nobody has read by then is lost. The outbox keeps all.

local partition = {}
local events, outbox, due -- the keys, nil where the call has not named them

local function split(key)
  local at = find(key, "}:s:", 1, true)
  return sub(key, 1, at and at + 1 or 0), sub(key, at and at + 4 or 1)
end

-- The last three of KEYS, which have to go with a record's; `named`: whether they are there.
function partition.open(keys, named)
  events, outbox, due = nil, nil, nil
  if named then
    local head, n = split(keys[1]), #keys
    if head == "" or keys[n - 2] ~= head .. "events" or keys[n - 1] ~= head .. "outbox" or keys[n] ~= head .. "due" then
      bad("keys: those of the partition do not go with the record")
    end
    events, outbox, due = keys[n - 2], keys[n - 1], keys[n]
  end
end

function partition.named()
  return due ~= nil
end

-- {type, subject, name, plan, limit, used, remaining, start, end, at, threshold of a warning}
function partition.say(level, rows, now)
  local _, subject = split(level.key)
  for _, row in ipairs(rows) do
    local kind, name, limit, use, left, start, fin, threshold = spread(row, 1, 8)
    local said = { kind, subject, name, row.plan, limit, use, left, start, fin, now, threshold }
    call("XADD", events, "MAXLEN", "~", MOST_EVENTS, "*", "e", mpack(said))
  end
end

-- {subject, pool, delta, sequence, birth, start, end, at, how it is billed}. Returns the birth id of the record.
function partition.bill(level, entries, birth, now)
  local _, subject = split(level.key)
  for _, entry in ipairs(entries) do
    local name, delta, sequence, start, fin, how = spread(entry, 1, 6)
    local word = how == 1 and "use" or "overage"
    local packed = mpack({ subject, name, delta, sequence, birth, start, fin, now, word })
    local id = call("XADD", outbox, "*", "o", packed)
    if birth == "" then
      birth = id
    end
  end
  return birth
end

-- Harvest has to look at a record from that instant on; nil: there is nothing to look for.
function partition.list(key, at)
  local _, subject = split(key)
  if at then
    call("ZADD", due, format("%.0f", at), subject)
  else
    call("ZREM", due, subject)
  end
end
