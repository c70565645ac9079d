"""Limits of Azure, and allowances that planning makes, in one place.

Azure's numbers: MicrosoftDocs/azure-ai-docs, how-to-manage-quotas.md ("Azure Machine Learning online endpoints") and
reference-yaml-deployment-managed-online.md. Allowances are estimates, stated in the plan if they decide something.
"""

GB = 1024**3

# Azure
MAX_REQUEST_TIMEOUT_MS = 180_000  # managed online deployment
KUBERNETES_TIMEOUT_MS = 150_000  # above it Azure makes a probe that Kubernetes refuses: azure-sdk-for-python#33660
MAX_INSTANCES = 50  # per deployment
UPGRADE_RESERVE_PERCENT = 20  # quota held back for rolling upgrades, except for families that skip it
ENDPOINT_BYTES_PER_S = 5_000_000  # bandwidth of one endpoint
UPLOAD_BYTES = 20 * GB  # above it the client warns about the upload: azure-cli#12651
MAX_TAGS, TAG_NAME_LENGTH, TAG_VALUE_LENGTH = 50, 512, 256  # Azure Resource Manager
IN_FLIGHT_FACTOR = 2  # 429 above this times max_concurrent_requests_per_instance times instances

# Hardware
MIN_COMPUTE_CAPABILITY = 7.5  # the lowest that torch's CUDA 13 wheels are built for
BF16_COMPUTE_CAPABILITY = 8.0
GPU_USABLE = 0.9  # of the nominal memory, after ECC and the driver's share
CUDA_CONTEXT_BYTES = int(0.8 * GB)  # context, cuBLAS and cuDNN workspaces of one process
HOST_BYTES = int(1.5 * GB)  # operating system and Azure's agents
PROCESS_BYTES = int(0.9 * GB)  # Python with torch and transformers imported
IMAGE_BYTES = {"cpu": 5 * GB, "cuda": 14 * GB}  # unpacked container image, on the local disk
# One vCPU: half a core with AVX-512 or one with AVX2, float32, and its share of the socket's memory bandwidth.
CPU_FLOPS, CPU_BYTES_PER_S = 60e9, 5e9

# Choosing
CPU_ENCODER_PARAMETERS = 400_000_000  # encoders below this size are planned on CPU by default
HEADROOM = {"cpu": 1.25, "cuda": 1.1}  # on memory, if the plan chooses the instance type
MIN_CPU_CORES = 4  # Azure's own advice: smaller ones run out of memory or disk, or fail the probe
MIN_CONTEXT = 2048  # tokens; a model that cannot have this much of its context does not count as fitting

# Serving
ACTIVATION_WIDTHS = 18  # live values per token, in hidden sizes: projections, feed-forward (4 wide, twice), residuals
GRAPHED_BUFFERS = 1  # further multiples of a batch's values: CUDA graphs keep theirs, benchmarks/results/memory.json
MAX_BATCH_SIZE = {"cpu": 8, "cuda": 32}
MAX_SEQUENCES = 256  # that a decoder on a GPU advances at once; more gain little, see benchmarks/results/decoders.json
EXPECTED_PROMPT_TOKENS, EXPECTED_NEW_TOKENS = 512, 256  # of a request, unless the user expects others
CACHE_TO_BATCH = 8  # bytes of a cache to a batch's values: a batch is halved until it takes no more beside the cache
CACHE_GRAIN = 256  # tokens; a multiple of any page of a cache
TOLD_LENGTHS = (2048, 8192, 32_768, 131_072)  # of requests, whose number at once the plan tells
LEAST_CONTEXT = 32  # tokens that may be asked for: room for a question and an answer
MEMORY_SHARES = (0.1, 0.98)  # of a GPU, that may be asked for
MAX_BATCH_TOKENS = {"cpu": 2048, "cuda": 16_384}
MAX_BATCH_IMAGES = {"cpu": 1, "cuda": 4}  # four images already saturate a GPU
IMAGE_SIZE, LATENT_SCALE, PROMPT_TOKENS = 512, 8, 77  # Stable Diffusion's own, if a model's are not known
UNET_WIDTHS = 40  # live values per latent position, in the UNet's first width: skips, feed-forward, attention
VAE_CHANNELS, VAE_MAPS = 256, 5  # of the decoder's last block, at full size; maps alive at once
IMAGE_STEPS = 50  # default of a request
LATENT_SHARE = 0.08  # of the UNet's weights per latent position: most are used where the grid is coarser
VAE_PASSES = 4  # cost of decoding an image, in passes of the UNet
QUEUE_ROWS = 256
NEW_TOKENS = 512  # answer length that the request timeout allows for
PRODUCTION_INSTANCES = 3  # that Microsoft advises at least for production, for high availability
RANKED_PROMPT_TOKENS, RANKED_ANSWER_TOKENS = 128, 128  # of the request used to rank instance types
EFFICIENCY = {"cpu": 0.5, "cuda": 0.3}  # fraction of the floor's speed that timeouts assume
LAYER_OVERHEAD_S = {"cpu": 0.0003, "cuda": 0.001}  # launching one layer's kernels without CUDA graphs
MIN_TIMEOUT_MS = 30_000

# Starting
LOAD_BYTES_PER_S = 100_000_000  # weights from a cold disk to memory
START_S = {"cpu": 40, "cuda": 70}  # imports, CUDA start, warm-up
PROBE_PERIOD_S, PROBE_TIMEOUT_S = 10, 5
MIN_PROBE_FAILURES = 30  # ARM's own default
NAMES_LENGTH = (6, 62)
