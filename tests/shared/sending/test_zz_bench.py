import asyncio, time
from tests.shared.sending.lanes import *
from tests.shared.sending.conftest import fabric
from shared.rate import Rate
from shared.metrics import EdgeMetrics
import uuid_utils
async def test_bench(fabric):
    for lanes in (1,8,200):
        threads=[ThreadId(uuid_utils.uuid7().hex) for _ in range(lanes)]
        lat=[]; n=0; end=time.monotonic()+2
        async def one(t):
            nonlocal n
            while time.monotonic()<end:
                s=time.monotonic(); sent(await fabric.send(request("x"*100,thread_id=t))); lat.append(time.monotonic()-s); n+=1
        await asyncio.gather(*(one(t) for t in threads))
        lat.sort(); print(f"\nlanes {lanes}: {n/2:.0f}/s p50 {lat[len(lat)//2]*1e3:.2f} ms p99 {lat[int(len(lat)*.99)]*1e3:.2f} ms")
    reqs=[request("x"*100,sender_id=UserId(f"u{i}")) for i in range(3000)]
    done=[]
    c=time.process_time(); s=time.monotonic()
    for r in reqs: fabric.sender.submit(r, done.append)
    sub=time.process_time()-c
    while len(done)<3000: await asyncio.sleep(.01)
    print(f"submit {sub/3000*1e6:.1f} us, whole {(time.process_time()-c)/3000*1e6:.1f} us CPU per message, {3000/(time.monotonic()-s):.0f}/s")
    from shared.settings import load_settings
    rate=Rate(fabric.bus, load_settings(messaging_throttle_limit=1000000), metrics=EdgeMetrics("b").sending)
    u=UserId("ava"); await rate.acquire(u,1); l=rate._leases[u]; l.units=10**6
    c=time.perf_counter()
    for _ in range(100000): rate.take(u,1)
    print(f"take {(time.perf_counter()-c)/1e5*1e6:.2f} us")
