// links: an empty program, to be linked with a room's library and those below it; with PLANTED_CALL it calls
// that function, which the room must not know (see ../CMakeLists.txt). Never asked to do it: the linker's
// word is enough.
#ifdef PLANTED_CALL
void PLANTED_CALL(void);
#endif

int main(int argc, char **argv) {
  (void)argv;
#ifdef PLANTED_CALL
  if (argc > 1) PLANTED_CALL();
#endif
  return argc > 1;
}
