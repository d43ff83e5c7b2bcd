#!/usr/bin/env bash
# What is to be run of the vLLM plug-in on a GPU, where it has never run: model runner V2, FlashAttention, CUDA graphs,
# bfloat16, and tensor parallelism with two GPUs. Install `vllm>=0.32,<0.33` and this package beside it first. DRY=1
# prints vLLM's commands, and starts nothing.
#
#     scripts/gpu_vllm.sh [MODEL ...]        models of type llava or qwen2_5_vl; by default the embedded one
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
PORT=${PORT:-8123}
FEATHER="before-llm:method=(feather:fixed=true)"

# A server answers a question about a picture unpruned and with three methods, and counts tokens.
ask() {
  "$PYTHON" - "$PORT" <<'PY'
import base64, io, json, sys, urllib.request
from PIL import Image
port, stream = sys.argv[1], io.BytesIO()
Image.effect_mandelbrot((448, 448), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(stream, "PNG")
picture = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
model = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models"))["data"][0]["id"]
for method in ("none", "divprune:keep=1.0", "divprune:keep=0.25", "before-llm:method=(fastv:layer=0.25,keep=0.25)"):
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "What is shown?"}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 32, "temperature": 0}
    body["mm_processor_kwargs"] = {"feathervlm": method}
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), kind)
    reply = json.load(urllib.request.urlopen(request))
    print(method, reply["usage"]["prompt_tokens"], repr(reply["choices"][0]["message"]["content"][:80]))
PY
}

serve_and_ask() {
  local words=("$PYTHON" -m feathervlm serve --engine vllm --method "$FEATHER" --per-request --port "$PORT")
  if [ -n "${DRY:-}" ]; then
    "${words[@]}" --print "$@"
    return
  fi
  "${words[@]}" "$@" &  # the command becomes the server, so this is its process
  local server=$!
  for _ in $(seq 600); do
    kill -0 "$server" || return 1
    curl --silent --fail --output /dev/null "http://127.0.0.1:$PORT/health" && break
    sleep 1
  done
  ask || { kill "$server"; return 1; }
  kill "$server"
  wait "$server" || true
}

models=("$@")
[ ${#models[@]} -gt 0 ] || models=(embedded)
for model in "${models[@]}"; do
  echo "== $model: eager and float32, to be compared with the HF engine by make test-vllm's tests"
  serve_and_ask --model "$model" --dtype float32 -- --enforce-eager
  echo "== $model: bfloat16, CUDA graphs, FlashAttention, model runner V2 (vLLM's defaults)"
  serve_and_ask --model "$model" --dtype bfloat16
  echo "== $model: chunks of 64 tokens and prefix caching"
  serve_and_ask --model "$model" --dtype bfloat16 -- --max-num-batched-tokens 64 --enable-prefix-caching
  if [ "$(nvidia-smi --list-gpus 2>/dev/null | wc -l)" -ge 2 ] || [ -n "${DRY:-}" ]; then
    echo "== $model: two GPUs, on which both ranks have to keep the same tokens"
    serve_and_ask --model "$model" --dtype bfloat16 -- --tensor-parallel-size 2
  fi
done
