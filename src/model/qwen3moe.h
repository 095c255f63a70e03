// qwen3moe: Qwen3's mixture of experts, as one table of tensors and settings.
#pragma once
#include "src/model/architecture.h"

extern const architecture qwen3moe;
