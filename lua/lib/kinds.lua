-- What each kind of limit does in the functions that lib/compile.lua makes, as text.
-- @gives KINDS GRANTED

-- How a kind does it. `format`: of its state, whose fields are `reads`; `writes` are those of the new state.
-- `brief`: as much of the format as a charge can change, of `brief_writes`. `load` brings the state to now,
-- `left` says what is left, `late` prepares the figures `used` and `resets`. `#` stands for the number of the
-- limit, {a name} for one of its constants; c# is the amount, u# counts what is used, m# is the use at which a
-- pool has something to say. `retry` sets q# to when a bucket that refuses would not. `mark` is what a hold knows its
-- charge by; `back` looks, by the mark v#, whether b# may be given back; what `before` keeps is written, as
-- `unless_kept`, where nothing is.
local KINDS = {
  { -- pool: start, end, anchor, used, the rest
    format = "c6I6c6I7c23", reads = "s#, e#, n#, u#, r#", writes = "s#, e#, n#, u#, r#",
    brief = "c6I6c6I7", brief_writes = "s#, e#, n#, u#",
    load = [[
      local m# = M#[r#]
      if now >= e# or not m# then return end]],
    load_carried = [[
      local k#, m# = {limit}, {first}
      if now >= e# then return end
      if r# ~= UNTOUCHED then
        k#, m# = M#(r#)
        if not k# then return end
      end]],
    say = "if u# >= m# then return end",
    left = "{limit} - u#", used = "u#", resets = "e# == {never} and {none} or e#",
    mark = '(sunpack("<I6", s#))', back = 'if (sunpack("<I6", s#)) ~= v# then return end',
  },
  { -- fixed window: start, used; s# is false where it is closed
    format = "I6I5", reads = "s#, u#", writes = "s#, u#",
    load = [[
      local e# = (s# + {period}) * {tick}
      if now >= e# or s# == {never} then
        {open}
      end]],
    open_charge = "s#, u# = {now}, 0 e# = (s# + {period}) * {tick}", open_check = "u#, e# = 0, {none}",
    left = "{limit} - u#", used = "u#", resets = "e#",
    retry = "if c# <= {limit} then q# = e# end",
    mark = "s# * {tick}", back = "if s# * {tick} ~= v# then return end",
  },
  { -- sliding window: its index, used, previous; g# is what counts
    format = "I6I5I5", reads = "w#, u#, p#", writes = "w#, u#, p#",
    load = [[
      local e# = {now} - w# * {period}
      if e# < 0 or e# >= {period} then
        local t = {now}
        e# = t % {period}
        local w = (t - e#) / {period}
        p# = w == w# + 1 and u# or 0
        w#, u# = w, 0
      end]],
    weigh = [[
      local g# = u#
      if p# > 0 then
        local x = p# * ({period} - e#) + ({period} - 1)
        g# = u# + (x - x % {period}) / {period}
      end]],
    left = "{limit} - g#", used = "g#", resets = "(w# + 1) * ({period} * {tick})",
    mark = "w#", back = "if w# ~= v# then return end",
    -- As in lib/bucket.lua: within this window, else at its end, else within the next one.
    retry = [[
      if c# <= {limit} then
        local room, covered, k = {limit} - u# - c#, 0, nil
        if room >= 0 then
          local x = room * {period}
          covered = (x - x % p#) / p#
          k = (covered > 0 or u# == 0) and w# + 1
        end
        if not k then
          local x = ({limit} - c#) * {period}
          covered, k = (x - x % u#) / u#, w# + 2
          if covered > {period} then covered = {period} end
        end
        q# = (k * {period} - covered) * {tick}
      end]],
  },
  { -- token bucket: spent, fraction, tick of the last look
    format = "I5I5I6", reads = "u#, f#, t#", writes = "u#, f#, k#",
    load = [[
      local k# = {now}
      if k# > t# and u# > 0 then
        local x = (k# - t#) * {limit}
        if x >= u# * {period} then
          u# = 0
        else
          x = x + f#
          f# = x % {period}
          u# = u# - (x - f#) / {period}
        end
      end
      if u# <= 0 then u#, f# = 0, 0 end]],
    left = "{capacity} - u#", used = "u#",
    -- As in lib/bucket.lua: what has come back meanwhile is taken off. Where nothing is given back the state stays.
    mark = "now", before = "local i#, j#, o# = u#, f#, t#", unless_kept = "i#, j#, o#",
    back = [[
      if b# > 0 then
        local o = k# - (v# - v# % {tick}) / {tick}
        local z = o % {period} * {limit} + ({period} - 1)
        z = (o - o % {period}) / {period} * {limit} + (z - z % {period}) / {period}
        local all, kept = b# + c# - z, c# - z
        b# = (all > 0 and all or 0) - (kept > 0 and kept or 0)
        if b# >= u# then b#, f# = u#, 0 end
        i#, j#, o# = u# - b#, f#, k#
      end]],
    late = [[
      local e# = {none}
      if u# > 0 then
        local x = u# * {period} - f# + ({limit} - 1)
        e# = (k# + (x - x % {limit}) / {limit}) * {tick}
        if e# >= {beyond} then e# = {none} end
      end]],
    resets = "e#",
    retry = [[
      if c# <= {capacity} then
        local x = (u# + c# - {capacity}) * {period} - f# + ({limit} - 1)
        q# = (k# + (x - x % {limit}) / {limit}) * {tick}
        if q# >= {beyond} then q# = {none} end
      end]],
  },
}

-- A pool that has grants, by their digest (lib/grants.lua), of which h is the head, x what is left there and y
-- what all others have: a charge that goes there as a whole. d# is what was drawn, o# what went over, k# first what
-- was carried and then what the period has; t# are the marks.
local GRANTED = {
  format = "I6I6I6I7I7I7i7I2", reads = "s#, e#, n#, u#, d#, o#, k#, t#", writes = "s#, e#, n#, u#, d#, 0, r#, t#",
  load = [[
    if gi ~= {index} or now >= gu or now >= e# or o# > 0 or k# < 0 then return end
    local r# = k#
    k# = k# + {limit}]],
  charge = [[
    if gh == 0 then
      u# = u# + c#
      if {bounded} and u# > k# then return end
    else
      gx = gx - c#
      if gx < 0 then return end
      d# = d# + c#
    end]],
  check = "if {bounded} and gh == 0 and u# + c# > k# or gh > 0 and c# > gx then return end",
  -- What says something is looked for where it may be: an upper bound of what may be inexact is 8.
  say = "if t# % 2 == 0 and u# >= k# + gx + gy then return end",
  say_more = [[
    local z# = k# + d# + gx + gy
    if (u# + d# >= z# * {low} / 1000000 - 8 or u# + d# >= z# - {below}) and u# + d# >= M#(t#, z#) then return end]],
  left = "(u# < k# and k# - u# or 0) + gx + gy", used = "(u# + d#)",
}
