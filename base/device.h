// device: which accelerator a rank takes, as every part of the program names it.
#pragma once
#include <stdint.h>

typedef struct {
  int32_t index;    // as the backend counts them on this host; -1: none, and the rest is zero
  char pci[20];     // "0000:3b:00.0"
  uint8_t uuid[16]; // distinguishes two devices, and two parts of one device
  char name[64];
} device_id;

typedef enum {        // how two accelerators of one host reach each other
  DEVICE_LINK_HOST,   // through host memory alone
  DEVICE_LINK_PEER,   // into each other's memory, over PCIe
  DEVICE_LINK_ATOMIC, // the same with atomics in each other's memory, as NVLink has them
} device_link;
