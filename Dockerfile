# The maintained stack from pip packages; nothing is compiled.
#   docker build -t vcmamba_mm .
#   docker run --gpus all --shm-size 8g -v DATA:/vcmamba_mm/data vcmamba_mm \
#       tools/dist_train.sh configs/vcmamba_b_8xb128_in1k.py 8
FROM python:3.11-slim
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# libgl1, libglib2.0-0: for OpenCV, which mmcv needs; any version will do
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /vcmamba_mm
COPY . .
RUN pip install --no-cache-dir --editable '.[onedl,data,distill]'
CMD ["python", "-m", "vcmamba_mm.doctor"]
