#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The generated messages, with the warnings of generated code kept out of ours. */
#include "dsd.pb-c.h"
#include "wire.h"
