// qwen3moe: Qwen3's mixture of experts, as one table of tensors and one of settings.
#pragma once
#include "src/model/architecture.h"

extern const architecture qwen3moe;

enum { QWEN3MOE_SETTINGS = 138 };
extern const setting_row qwen3moe_settings[QWEN3MOE_SETTINGS]; // qwen3moe_settings.c
