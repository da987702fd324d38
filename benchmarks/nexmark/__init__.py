"""Nexmark: queries over a stream of people, auctions and bids (Tucker, Tufte, Papadimos, Maier: NEXMark, 2002), as Beam has them.

`events` makes the stream, `queries` are ours, `oracle` has them in SQL, `opponent` runs those that ship with Beam, `race` times both.
"""

from benchmarks.nexmark.race import bench as bench
