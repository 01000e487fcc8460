"""Detect objects over HTTP. Images that arrive at almost the same time are one batch.

pip install fastapi uvicorn python-multipart
python examples/server.py MODEL [CONFIG]
curl -F image=@image.jpg localhost:8000/detect
"""

import asyncio
import io
import itertools
import sys

import uvicorn
from fastapi import FastAPI, HTTPException, UploadFile
from PIL import Image

from evit_mm import Detector
from evit_mm.errors import DataError, EvitError


def create_app(detector, most=16, seconds=0.005):
    """Return the server; ``most`` is the size of a batch, ``seconds`` the time to wait for it."""
    detector.pipeline.check_memory()  # refuses a config that cannot take images in memory
    app, lock, waiting = FastAPI(title='evit_mm'), asyncio.Lock(), []

    @app.get('/')
    def classes() -> list[str]:
        return detector.classes

    @app.post('/detect')
    async def detect(image: UploadFile) -> dict[str, list]:
        item = (asyncio.Future(), await asyncio.to_thread(prepare, await image.read()))
        waiting.append(item)
        async with lock:
            if not item[0].done():  # the first image runs the batch, in which the others are
                await asyncio.sleep(seconds)
                batch, waiting[:] = sorted(waiting[:most], key=shape), waiting[most:]
                for _, part in itertools.groupby(batch, shape):
                    futures, images = zip(*part, strict=True)
                    samples = await asyncio.to_thread(detector.detect, images)
                    for future, sample in zip(futures, samples, strict=True):
                        future.set_result(sample.pred_instances)
        found = item[0].result()
        names = [detector.classes[label] for label in found.labels]
        boxes, scores, labels = (found[key].tolist() for key in ('bboxes', 'scores', 'labels'))
        return {'boxes': boxes, 'scores': scores, 'labels': labels, 'names': names}

    def prepare(content):
        try:
            return detector.prepare(Image.open(io.BytesIO(content)))
        except DataError as error:
            raise HTTPException(400, str(error)) from None
        except Exception:  # the readers of Pillow raise errors of any type
            raise HTTPException(400, 'the file is not an image that Pillow can read') from None

    def shape(item):
        return item[1]['inputs'].shape

    return app


if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit(f'usage: python {sys.argv[0]} MODEL [CONFIG]')
    try:
        app = create_app(Detector(*sys.argv[1:3]))
    except EvitError as error:
        sys.exit(f'error: {error}')
    uvicorn.run(app)
